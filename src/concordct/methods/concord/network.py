"""The flagship's network at work: texture led by residual shifting to what tissue of its kind looks like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from concordct.diffusion import residual_flow
from concordct.errors import ConcordctError
from concordct.methods.concord.bundle import METHOD
from concordct.methods.concord.inputs import Prepared
from concordct.nets.remainder import RemainderConfig, RemainderUNet
from concordct.training.bundle import Bundle

#: Air around the body that the network sees, pixels.
BODY_MARGIN = 16


def shifted(network: RemainderUNet, one: Prepared, start: NDArray[np.float32], *, steps: int) -> NDArray[np.float32]:
    """The texture at the end of the flow; outside the body's box it stays what it was.

    Parameters
    ----------
    one : a slice with body. start : [y, x], its transported texture with what was drawn.
    steps : evaluations of the network, 1 or more.
    """
    assert one.body is not None
    rows, columns = start.shape
    top, bottom = max(one.body[0] - BODY_MARGIN, 0), min(one.body[1] + BODY_MARGIN, rows)
    left, right = max(one.body[2] - BODY_MARGIN, 0), min(one.body[3] + BODY_MARGIN, columns)
    device = next(network.parameters()).device
    divisor = network.divisor

    def tensor(planes: NDArray[np.float32]) -> torch.Tensor:
        cut = planes[:, top:bottom, left:right]
        width = ((0, 0), (0, -(bottom - top) % divisor), (0, -(right - left) % divisor))
        padded = torch.from_numpy(np.pad(cut, width, mode="symmetric"))[None]
        return padded.to(device).contiguous(memory_format=torch.channels_last)

    maps, condition = tensor(one.maps), torch.from_numpy(one.condition)[None].to(device)

    def velocity(x: torch.Tensor, shift: float) -> torch.Tensor:
        place = torch.tensor([shift], dtype=torch.float32, device=device)
        return torch.as_tensor(network(x, maps, condition, place))

    with torch.inference_mode():
        found = residual_flow.sample(velocity, tensor(start[None]), steps=steps)
    texture = start.copy()
    texture[top:bottom, left:right] = found[0, 0, : bottom - top, : right - left].cpu().numpy()
    if not np.isfinite(texture).all():
        raise ConcordctError(f"{METHOD}: expected finite HU, found others")
    return texture


def network_of(bundle: Bundle, *, prefix: str = "") -> RemainderUNet:
    """The network inside a bundle, in evaluation, on a GPU where there is one.

    Raises
    ------
    ConcordctError : tensors that do not fit their description.
    """
    try:
        described = dict(bundle.metadata["network"])
        network = RemainderUNet(RemainderConfig(**{**described, "widths": tuple(described["widths"])}))
        tensors = {
            name.removeprefix(prefix): torch.from_numpy(np.array(one))
            for name, one in bundle.tensors.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ConcordctError(f"expected a whole {METHOD} model, found one that does not fit: {line}") from error
    network.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster
    return network
