"""What runs in PyRadiomics' own environment, and the phantom and the settings of its fixture.

PyRadiomics 3.0.1 builds on Python 3.11 only; `make reference` makes the environment (tests/reference_pyradiomics.txt).
There, `python tests/reference_pyradiomics.py tests/data/pyradiomics_3.0.1.json` makes the fixture again, and
`python tests/reference_pyradiomics.py IN.npz PARAMETERS OUT.npz` measures the ROIs of any image.
"""

import json
import sys
from pathlib import Path

import numpy as np

SPACING = (3.0, 0.8, 0.7)
TEXTURE = ["firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"]
EVERYTHING = {name: [] for name in [*TEXTURE, "shape"]}

#: name -> parameter file; each exercises settings that the others leave alone.
CASES = {
    "solid": {"setting": {"binWidth": 25}, "featureClass": EVERYTHING},
    "planar": {"setting": {"binWidth": 25, "force2D": True}, "featureClass": EVERYTHING},
    "weighted": {
        "setting": {
            "binWidth": 10,
            "symmetricalGLCM": False,
            "weightingNorm": "infinity",
            "resegmentRange": [-50, 100],
            "voxelArrayShift": 1000,
        },
        "featureClass": EVERYTHING,
    },
    "distances": {
        "setting": {"binCount": 16, "weightingNorm": "euclidean", "distances": [1, 2], "gldm_a": 1},
        "featureClass": {name: [] for name in TEXTURE},
    },
    "resampled": {
        "setting": {
            "binWidth": 25,
            "resampledPixelSpacing": [1.1, 1.1, 2.0],
            "resegmentRange": [-2, 2],
            "resegmentMode": "sigma",
            "resegmentShape": True,
        },
        "imageType": {"Original": {}, "LoG": {"sigma": [2.0], "binWidth": 5}},
        "featureClass": EVERYTHING,
    },
    "normalized": {
        "setting": {"binWidth": 0.3, "normalize": True, "removeOutliers": 3, "preCrop": True, "padDistance": 3},
        "imageType": {"Original": {}, "Wavelet": {"level": 2, "start_level": 1, "wavelet": "haar"}},
        "featureClass": {"firstorder": [], "glszm": []},
    },
    "across": {
        "setting": {"binWidth": 25, "force2D": True, "force2Ddimension": 2},
        "imageType": {"Original": {}, "Wavelet": {}},
        "featureClass": {"glcm": ["Contrast", "MCC"], "glszm": [], "ngtdm": []},
    },
    "filters": {
        "setting": {"binWidth": 25},
        "imageType": {
            "LoG": {"sigma": [1.0, 3.0]},
            "Wavelet": {},
            "Square": {},
            "SquareRoot": {},
            "Logarithm": {},
            "Exponential": {},
            "Gradient": {},
            "LBP2D": {"binWidth": 1},
        },
        "featureClass": {"firstorder": [], "glrlm": [], "glcm": ["Contrast", "Imc1", "Idmn"]},
    },
}


def phantom():
    """Whole HU [6, 40, 44] int16 and labels int32: a square in one slice, a ragged block, a ball."""
    generator = np.random.default_rng(0)
    noise = generator.integers(-1200, 1200, (8, 42, 46))
    hu = sum(noise[z : z + 6, y : y + 40, x : x + 44] for z in (0, 1) for y in range(3) for x in range(3)) // 12
    labels = np.zeros(hu.shape, np.int32)
    labels[0, 2:22, 3:25] = 1
    labels[2:6, 4:22, 4:22] = 2 * (generator.integers(0, 10, (4, 18, 18)) > 2)
    z, y, x = np.ogrid[:6, :40, :44]
    labels[((z - 3) * 2.5) ** 2 + (y - 30) ** 2 + (x - 32) ** 2 < 60] = 3
    return hu.astype(np.int16), labels


def rows(hu, labels, spacing_mm, parameters):
    """Columns, and their values [roi, column] for every label, as PyRadiomics gives them."""
    import logging

    import SimpleITK as sitk
    from radiomics import featureextractor, logger

    logger.setLevel(logging.ERROR)
    image, mask = sitk.GetImageFromArray(hu), sitk.GetImageFromArray(labels)
    image.SetSpacing([float(mm) for mm in spacing_mm[::-1]])
    mask.CopyInformation(image)
    extractor = featureextractor.RadiomicsFeatureExtractor(parameters)
    extractor.addProvenance(False)
    found = [extractor.execute(image, mask, label=int(label)) for label in np.unique(labels[labels > 0])]
    columns = list(found[0])
    if any(list(row) != columns for row in found):
        raise SystemExit("PyRadiomics gives other columns from ROI to ROI")
    return columns, np.array([[float(row[column]) for column in columns] for row in found])


def make_fixture(target):
    """The fixture of tests/test_features_pyradiomics.py."""
    import radiomics

    fixture = {"origin": f"PyRadiomics {radiomics.__version__}, tests/reference_pyradiomics.py", "cases": {}}
    for name, parameters in CASES.items():
        columns, values = rows(*phantom(), SPACING, parameters)
        prefixes = list(dict.fromkeys("_".join(column.split("_")[:2]) for column in columns))
        fixture["cases"][name] = {
            "columns": {
                prefix: [c.split("_")[2] for c in columns if c.startswith(f"{prefix}_")] for prefix in prefixes
            },
            "values": [[float(f"{value:.10g}") for value in row] for row in values],
        }
    target.write_text(json.dumps(fixture, separators=(",", ":")))


def measure(source, parameters, target):
    """An image (npz: hu, labels, spacing_mm) under a parameter file, to columns and values in another npz."""
    found = np.load(source)
    columns, values = rows(found["hu"], found["labels"], found["spacing_mm"], parameters)
    np.savez(target, columns=columns, values=values)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        make_fixture(Path(sys.argv[1]))
    else:
        measure(*sys.argv[1:])
