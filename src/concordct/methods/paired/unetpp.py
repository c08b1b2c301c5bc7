"""LTDiff++'s "UNet++" row: the regression of `encoder_decoder` with all of UNet++'s skips."""

from __future__ import annotations

from concordct.methods.method import Method
from concordct.methods.paired.encoder_decoder import UNETPP_RECIPES, fit, load

ENTRY = Method("UNet++, regression from source to target", load, fit, UNETPP_RECIPES, sampling=frozenset({"depth"}))
