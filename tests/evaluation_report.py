"""An evaluation report of random volumes, written as its tests want it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from concordct.report.evaluation import Curve, ShownStack, write_evaluation_report

DEPTH, HEIGHT, WIDTH = 9, 60, 72
POSITIONS = [-100.0 + 2.5 * z for z in range(DEPTH)]

#: Axial, head first supine: z up, rows towards the back, columns towards the left.
AFFINE = np.array([[0, 0, 0.8, -30.0], [0, 0.8, 0, -150.0], [2.5, 0, 0, -100.0], [0, 0, 0, 1]])

RESULTS = {
    "schema": 1,
    "inputs": {"source": {"kernel": "soft", "slices": DEPTH}},
    "model": {"method": "spectral", "mode": "sample"},
    "provenance": {"software": "concordct", "seed": 0, "simulated_or_real": "simulated"},
    "image_quality": {
        "source": {"rmse_hu": 45.3, "mae_hu": 30.0, "psnr_db": 30.1, "ssim": 0.9},
        "standardized": {"rmse_hu": 14.6, "mae_hu": 10.0, "psnr_db": 40.1, "ssim": 0.97},
        "data_range_hu": 1500,
        "region": "body",
    },
    "bias_by_hu_range": [{"range": "[-1000,-500]", "source": 1.5, "standardized": -0.25, "voxels": 12345}],
    "agreement": {
        "per_class": [
            {"class": "glcm", "features": 2, "source_ccc_mean": 0.54, "source_ccc_sd": 0.2,
             "standardized_ccc_mean": 0.95, "standardized_ccc_sd": 0.03, "source_re_share": 0.3,
             "standardized_re_share": 0.9}
        ],
        "features": [
            {"name": "glcm_contrast", "class": "glcm", "source_ccc": 0.5, "standardized_ccc": 0.93, "source_re": 0.4,
             "standardized_re": 0.05},
            {"name": "glcm_idm", "class": "glcm", "source_ccc": 0.58, "standardized_ccc": None, "source_re": 0.4,
             "standardized_re": float("nan")},
        ],
        "undefined": ["glcm_idm"],
    },
    "nps": {"bands": [{"low": 0.0, "high": 0.05, "target": 900.0, "source": 300.0, "standardized": 880.0,
                       "ratio": 0.978, "error": 0.05}]},
    "warnings": ["The coherence is below 0.5 above 7 lp/cm."],
}  # fmt: skip


def random_volumes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        # The whole of int16, so that every predictor and both byte planes are met.
        "source": rng.integers(-32768, 32768, (DEPTH, HEIGHT, WIDTH)).astype(np.int16),
        "standardized": rng.normal(0, 400, (DEPTH, HEIGHT, WIDTH)).astype(np.float32),
        "target": rng.normal(-200, 900, (DEPTH, HEIGHT, WIDTH)).astype(np.float32),
    }


def write(path: Path, volumes: dict[str, np.ndarray], **more) -> int:
    frequency = np.linspace(0, 6.25, 40)
    settings = {
        "results": RESULTS,
        "stacks": [ShownStack(name, hu) for name, hu in volumes.items()],
        "spacing_mm": (2.5, 0.8, 0.8),
        "slice_positions_mm": POSITIONS,
        "curves": [
            Curve("Transfer function", "lp/cm", "H(f)", [("H(f)", frequency, 1 + frequency)], x2_label="cycles/pixel",
                  x2_per_x=0.08, markers=[(5.0, "cut-off")]),
            Curve("Noise power", "lp/cm", "NPS", [("source", frequency, np.exp(-frequency))], log_y=True),
        ],
        "title": "Soft to sharp",
        "affine": AFFINE,
    }  # fmt: skip
    return write_evaluation_report(path, **{**settings, **more})
