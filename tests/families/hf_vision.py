"""Models of images and videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from .hf_common import CALM, WIDTH, hf, pixels, sub_config

VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 128,
}  # fmt: skip
RESNET = sub_config(
    "ResNetConfig", embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
    out_features=["stage4"],
)  # fmt: skip
DETR = {
    "backbone_config": RESNET, "num_queries": 6, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": WIDTH, "dropout": 0.0,
    "num_labels": 7, "use_timm_backbone": False, "use_pretrained_backbone": False,
}  # fmt: skip
SAM = {
    "vision_config": {
        "hidden_size": 48, "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64,
        "patch_size": 8, "window_size": 5, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_dim": 96,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
    "mask_decoder_config": {
        "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32,
    },
}  # fmt: skip


def frames(count: int, size: int = 32) -> Any:
    return lambda rng: {"pixel_values": torch.randn(1, count, 3, size, size, generator=rng)}


def prompted(rng: Generator) -> dict[str, Any]:
    """An image and points in it."""
    points = 8 + 48 * torch.rand(1, 2, 3, 2, generator=rng)
    labels = torch.randint(0, 2, (1, 2, 3), generator=rng)
    labels[..., 0] = 1
    labels[..., 1] = 0
    return {**pixels(64, batch=1)(rng), "input_points": points, "input_labels": labels}


FAMILIES = [
    hf("convnext", "ConvNextForImageClassification", {
        "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": 7}, pixels(64), by_inductor=True),
    hf("beit", "BeitForImageClassification", {**VIT, **CALM, "use_relative_position_bias": True, "num_labels": 7,
                                              "use_shared_relative_position_bias": False}, pixels(), bitwise=False,
       why="torch.export chooses other operators than eager"),
    hf("dinov2", "Dinov2Model", {**VIT, **CALM, "mlp_ratio": 2, "layerscale_value": 1.0}, pixels(40)),
    hf("levit", "LevitForImageClassification", {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "num_labels": 7}, pixels(64)),
    hf("mobilevit", "MobileViTForImageClassification", {
        "image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64],
        "num_attention_heads": 4, "num_labels": 7, **CALM, "classifier_dropout_prob": 0.0, "mlp_ratio": 2.0,
    }, pixels(64)),
    hf("efficientnet", "EfficientNetForImageClassification", {
        "image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "num_labels": 7,
        "dropout_rate": 0.0, "drop_connect_rate": 0.0, "out_channels": [16, 24, 40, 80, 112, 192, 64],
        "expand_ratios": [1, 3, 3, 3, 3, 3, 3]}, pixels(64), by_inductor=True),
    hf("segformer", "SegformerForSemanticSegmentation", {
        "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
        "mlp_ratios": [2, 2, 2, 2], "decoder_hidden_size": 32, "num_labels": 7, "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0, **CALM}, pixels(64)),
    hf("swinv2", "Swinv2ForImageClassification", {
        "image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4,
        "mlp_ratio": 2.0, "drop_path_rate": 0.0, "num_labels": 7, **CALM}, pixels()),
    hf("cvt", "CvtForImageClassification", {
        "embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 7,
        "drop_rate": [0.0, 0.0, 0.0], "attention_drop_rate": [0.0, 0.0, 0.0], "drop_path_rate": [0.0, 0.0, 0.0],
    }, pixels(64)),
    hf("focalnet", "FocalNetForImageClassification", {
        "image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [1, 2], "focal_levels": [2, 2],
        "focal_windows": [3, 3], "mlp_ratio": 2.0, "drop_path_rate": 0.0, "num_labels": 7}, pixels()),
    hf("hiera", "HieraForImageClassification", {
        "image_size": [32, 32], "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "num_query_pool": 2,
        "masked_unit_size": [4, 4], "query_stride": [2, 2], "embed_dim_multiplier": 2.0, "mlp_ratio": 2.0,
        "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "num_labels": 7}, pixels()),
    hf("swin2sr", "Swin2SRForImageSuperResolution", {
        "image_size": 16, "patch_size": 1, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
        "mlp_ratio": 2.0, "drop_path_rate": 0.0, "upscale": 2, "upsampler": "pixelshuffle", **CALM}, pixels(16)),
    hf("dpt", "DPTForDepthEstimation", {
        **VIT, **CALM, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 16, 24, 32],
        "fusion_hidden_size": 16, "is_hybrid": False, "head_in_index": -1, "reassemble_factors": [4, 2, 1, 0.5],
    }, pixels()),
    hf("detr", "DetrForObjectDetection", DETR, pixels(64), by_inductor=True),
    hf("deformable_detr", "DeformableDetrForObjectDetection", {
        **DETR, "num_feature_levels": 2, "encoder_n_points": 2, "decoder_n_points": 2, "two_stage": False,
        "backbone_config": sub_config(
            "ResNetConfig", embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage3", "stage4"]),
    }, pixels(64), fixed=(4, 6)),
    hf("superpoint", "SuperPointForKeypointDetection", {
        "encoder_hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32, "descriptor_decoder_dim": 32,
        "nms_radius": 2}, pixels(64), by_inductor=True),
    hf("sam", "SamModel", SAM, prompted, by_inductor=True, by_pipeline=True),
    hf("vit_mae", "ViTMAEForPreTraining", {
        **VIT, **CALM, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 64, "mask_ratio": 0.5,
    }, lambda rng: {**pixels()(rng), "noise": torch.rand(2, 16, generator=rng)}),
    hf("timesformer", "TimesformerModel", {**VIT, **CALM, "num_frames": 3}, frames(3)),
]
