"""Stable or progressive, from the initial and the follow-up scan: MONAI's ResNet in three dimensions.

CIResDiff, Sec. 3.4 (He et al. 2016, doi:10.1109/CVPR.2016.90; Hara et al. 2018 for three dimensions). Group instead
of batch normalization: batches of a few scans have no statistics worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from concordct.errors import ConcordctError

#: All channels are normalized together: by themselves they would lose how dense one scan is against the other.
GROUPS = 1


class PairClassifier(nn.Module):
    """A ResNet over scans as channels, and perhaps a table beside its pooled features.

    Parameters
    ----------
    scans : channels: 2 for initial and follow-up, 1 for the initial alone.
    table : numbers of the table that are seen beside the scans; 0 for none.
    widths : channels of the four stages. blocks : of each stage.

    Raises
    ------
    ConcordctError : MONAI is not installed.
    """

    def __init__(self, scans: int, *, table: int = 0, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        try:
            from monai.networks.nets.resnet import ResNet
        except ImportError:
            raise ConcordctError(
                "expected MONAI for the classifier, found none: pip install 'concordct[followup]'"
            ) from None
        self.trunk = ResNet(
            "basic",
            list(blocks),
            list(widths),
            n_input_channels=scans,
            conv1_t_size=3,
            conv1_t_stride=2,
            no_max_pool=True,
            feed_forward=False,
        )
        _group_norms(self.trunk)
        self.table = table
        self.head = nn.Linear(widths[-1] + table, 1)

    def forward(self, scans: Tensor, table: Tensor | None = None) -> Tensor:
        """[b, scans, z, y, x] and [b, table] to the logit of "progressive", [b]."""
        found = self.trunk(scans)
        given = 0 if table is None else table.shape[1]
        if given != self.table:
            raise ConcordctError(f"the classifier's table: expected {self.table} numbers, found {given}")
        if table is not None:
            found = torch.cat([found, table], dim=1)
        return self.head(found)[:, 0]


def _group_norms(module: nn.Module) -> None:
    """Put group where batch normalization is; MONAI's own argument for it (1.6) does not reach the blocks."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            _group_norms(child)
