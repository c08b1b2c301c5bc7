"""Every endpoint by name. A new one is its own file and one line here."""

from __future__ import annotations

from concordct.endpoints import density, emphysema
from concordct.endpoints.endpoint import Endpoint

ENDPOINTS: dict[str, Endpoint] = {
    "density": density.ENDPOINT,
    "emphysema": emphysema.ENDPOINT,
}
