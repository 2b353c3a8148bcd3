"""``report.html``: what a deployment did, as one page that needs nothing else."""

from repblocks.deployment.page.rendering import render_page as render_page
