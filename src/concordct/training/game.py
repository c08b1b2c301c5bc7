"""What games share: seeds for dropout, replayed images, older copies of a network, and a generator at work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def seeded_by(seeds: Sequence[int]) -> Iterator[torch.Generator]:
    """Dropout and the yielded generator follow from the batch's seeds."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeds[0] % 2**62)
        yield torch.Generator().manual_seed((seeds[0] + 1) % 2**62)


class Replay(nn.Module):
    """The last made images, half of which a discriminator sees instead of the newest (Shrivastava et al. 2017).

    Part of the task's buffers, so that a resumed game shows the same images.
    """

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.images: Tensor
        self.held: Tensor
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, made: Tensor, random: torch.Generator) -> Tensor:
        """Images [b, ...] to as many, each by chance of one half an older one, whose place it takes."""
        shown = []
        for image in made.detach():
            held = int(self.held)
            if held < len(self.images):
                self.images[held] = image
                self.held += 1
            elif torch.rand((), generator=random) < 0.5:
                place = int(torch.randint(len(self.images), (), generator=random))
                image, older = self.images[place].clone(), image
                self.images[place] = older
            shown.append(image)
        return torch.stack(shown)


class Copies(nn.Module):
    """Older weights of a network, at most `count`, newest last; nobody trains them."""

    def __init__(self, net: nn.Module, count: int) -> None:
        super().__init__()
        self._net = [net]  # no submodule: its weights belong to others
        self.count = count
        self.held: Tensor
        self.register_buffer("held", torch.zeros((), dtype=torch.long))
        for place in range(count):
            for name, one in net.state_dict().items():
                self.register_buffer(f"{place}/{name}".replace(".", "|"), one.detach().clone())

    @torch.no_grad()
    def keep(self) -> None:
        """Take the network as it is now; the oldest copy goes."""
        for name, one in self._net[0].state_dict().items():
            for place in range(self.count - 1):
                self._buffer(place, name).copy_(self._buffer(place + 1, name))
            self._buffer(self.count - 1, name).copy_(one)
        self.held.add_(1).clamp_(max=self.count)

    def _buffer(self, place: int, name: str) -> Tensor:
        return self.get_buffer(f"{place}/{name}".replace(".", "|"))

    def forward(self, place: int, *arguments: Tensor) -> Tensor:
        """What the copy makes; -1 is the newest, and no more than `held` lie behind it."""
        chosen = place % self.count
        weights = {name: self._buffer(chosen, name).clone() for name in self._net[0].state_dict()}
        return functional_call(self._net[0], weights, arguments)
