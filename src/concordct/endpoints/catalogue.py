"""Every endpoint by name. A new one is its own file and one line here."""

from __future__ import annotations

from concordct.endpoints import calcium, density, emphysema, fibrosis, nodules, noise
from concordct.endpoints.endpoint import Endpoint

ENDPOINTS: dict[str, Endpoint] = {
    "density": density.ENDPOINT,
    "emphysema": emphysema.ENDPOINT,
    "fibrosis": fibrosis.ENDPOINT,
    "calcium": calcium.ENDPOINT,
    "nodules": nodules.ENDPOINT,
    "noise": noise.ENDPOINT,
}
