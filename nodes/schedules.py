"""Limits of samplers and schedulers with a MODEL whose noise starts at a sigma of 4,518."""

from __future__ import annotations

import copy
import math
from typing import Any

from ..imprint.errors import ImprintError
from ..imprint.noise import FINITE_SIGMA

_SECOND_ORDER = {"heun", "dpm_2", "dpm_2_ancestral", "dpm_fast", "dpm_adaptive"}
_SECOND_ORDER |= {"dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"}
# The number of steps from which a sampler copes with a scheduler's uneven steps: third-order ones and ipndm_v
# extrapolate from them, the two that choose their own steps skip the very last one, second-order ones with noise have
# too few to remove it again, and res_multistep's coefficients ignore noise and guidance's second picture.
_THIRD_ORDER = {"normal": math.inf, "ddim_uniform": math.inf, "kl_optimal": 20}
_NOT_LINEAR = {"linear_quadratic": math.inf}
_WITH_NOISE = dict.fromkeys(("karras", "exponential", "normal", "ddim_uniform", "kl_optimal"), 20)
_FEW_WITH_NOISE = {"normal": 8, "ddim_uniform": 8}
_UNEVEN = {
    "dpmpp_3m_sde": _THIRD_ORDER,
    "dpmpp_3m_sde_gpu": _THIRD_ORDER,
    "dpm_fast": _NOT_LINEAR,
    "dpm_adaptive": _NOT_LINEAR,
    "ipndm_v": _NOT_LINEAR,
    "dpm_2_ancestral": {"karras": 8, "exponential": 8},
    "dpmpp_2m_sde_heun": _FEW_WITH_NOISE,
    "dpmpp_2m_sde_heun_gpu": _FEW_WITH_NOISE,
    "res_multistep_cfg_pp": {"karras": 20, "exponential": 20},
    "res_multistep_ancestral": _WITH_NOISE,
    "res_multistep_ancestral_cfg_pp": _WITH_NOISE | {"beta": 20},
}
_SPREAD = {"linear_quadratic"}  # with equal steps in sigma: from 4,518 down, all but the last would see only noise


def started_where_it_stands(model: Any, sampler_name: str, scheduler: str, steps: int) -> Any:
    """The MODEL or, for samplers and schedulers that cannot handle its largest sigmas, a clone without those above
    `FINITE_SIGMA`.

    Raises `ImprintError` for a sampler that cannot handle the scheduler's steps.
    """
    if steps < _UNEVEN.get(sampler_name, {}).get(scheduler, 0):
        raise ImprintError(
            f"{sampler_name} draws garbage in {steps} steps of scheduler {scheduler}, which are too uneven for it; set "
            "scheduler to simple, or sampler_name to dpmpp_2m"
        )
    sampling = model.get_model_object("model_sampling")
    if (sampler_name in _SECOND_ORDER or scheduler in _SPREAD) and sampling.sigma_max > FINITE_SIGMA:
        finite, model = copy.deepcopy(sampling), model.clone()
        finite.set_sigmas(sampling.sigmas[sampling.sigmas <= FINITE_SIGMA])
        model.add_object_patch("model_sampling", finite)
    return model
