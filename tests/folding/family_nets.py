"""The smallest networks of timm's families, with weights and statistics that show errors."""

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from truth import perturb

# Any image: taken at 64 pixels.
ANY_SIZE = """
    caformer_s18 convformer_s18 convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano
    crossvit_tiny_240 cs3darknet_focus_s csatv2 cspdarknet53 cspnext_tiny cspresnet50 darknet17
    davit_tiny densenet121 dla34 dla46x_c dpn48b eca_resnext26ts ecaresnet26t edgenext_xx_small
    efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1 efficientvit_b0
    efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0 fastvit_mci0 fastvit_sa12 fastvit_t8
    fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts gcresnext26ts gernet_s ghostnet_050
    ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small iformer_t
    inception_next_atto lambda_resnet26t lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception
    lowformer_b0 mambaout_femto mixnet_s mnasnet_small mobilenet_edgetpu_100 mobilenetv2_035
    mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0
    mobileone_s1 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nextvit_small nf_regnet_b0
    nf_resnet26 nfnet_l0 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny
    regnetv_040 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
    repvit_m1_1 res2net50_26w_4s resnest14d resnet10t resnet18 resnetaa34d resnetblur18 resnetrs50
    resnetv2_18 resnetv2_50 resnext26ts resnext50_32x4d rexnet_100 selecsls42 semnasnet_050
    sequencer2d_s seresnet18 shvit_s1 skresnet18 spnasnet_100 starnet_s1 swiftformer_xs
    tf_efficientnet_lite0 tf_mixnet_s tiny_vit_5m_224 tinynet_e tresnet_m twins_pcpvt_small
    twins_svt_small vgg11_bn vovnet39a wide_resnet50_2 xception41 xception41p xcit_nano_12_p8_224
"""
# Built for one size: built for 64 pixels.
BUILT_FOR_A_SIZE = """
    botnet26t_256 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_nano_rw_224 coatnet_pico_rw_224
    convit_tiny deit_tiny_distilled_patch16_224 efficientformerv2_s0 eva02_tiny_patch14_224
    gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224 levit_128s levit_conv_128s mixer_s16_224 nest_tiny
    pit_ti_224 resmlp_12_224 sebotnet33ts_256 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    test_maxvit tnt_s_patch16_224 visformer_tiny vit_tiny_patch16_224 vitamin_small_224
    volo_d1_224
"""
# Neither: at the least they take.
LARGER = {
    "bat_resnext26ts": 256,
    "eca_halonext26ts": 256,
    "efficientformer_l1": 224,
    "halonet26t": 256,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
}
OPTIONS = {
    "vgg11_bn": {"mlp_ratio": 0.01},
    "nasnetalarge": {"stem_size": 24, "num_features": 1152},
    **{name: {"img_size": 64} for name in BUILT_FOR_A_SIZE.split()},
}
NETS = sorted([*ANY_SIZE.split(), *BUILT_FOR_A_SIZE.split(), *LARGER])
TINY = ("lcnet_035", "mobilenetv2_035", "repghostnet_050", "resnet10t")


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Build a network in float64 and evaluation mode, and an example of two images.

    Its BatchNorm statistics are measured on random images and perturbed; what starts at zero and
    would hide a branch is opened.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=16, **OPTIONS.get(name, {})).double()
        size = LARGER.get(name, 64)
        open_closed_gains(model)
        images = torch.randn(6, 3, size, size, dtype=torch.float64)
        measure_statistics(model, images)
        return model, images[:2]


def measure_statistics(model: nn.Module, images: Tensor) -> None:
    """Calibrate and perturb every BatchNorm, each on what the perturbed ones before it give.

    Perturbed all at once, they would make the values of a deep network explode.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()


def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    values = inputs[0].transpose(0, 1).flatten(1)
    norm.running_mean.copy_(values.mean(1))
    norm.running_var.copy_(values.var(1))
    # A channel that hardly varies would be blown up on other images.
    norm.running_var.clamp_(min=0.05 * norm.running_var.mean())
    perturb(norm)


def open_closed_gains(model: nn.Module) -> None:
    """Give values to parameters that start so small that what they multiply does not count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() > 1e-3:
                continue
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif parameter.numel() == max(parameter.shape, default=1):
                parameter.uniform_(0.5, 1.0)
            else:
                parameter.normal_(0.0, 0.02)
