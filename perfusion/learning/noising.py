"""What a denoiser learns from: pictures with noise in them, and what it has to say about them; as its scheduler's configuration
tells, by diffusion (Stable Diffusion, PixArt) or by flow matching (Sana)."""

from diffusers import DDPMScheduler
from torch import Tensor

from perfusion.errors import UserError


def noising_of(scheduler) -> "Diffusion | Flow":
    """The noising that the pipeline's denoiser was trained with. Raises UserError for a kind that is not known here."""
    config = scheduler.config
    if config.get("prediction_type") == "flow_prediction" or "FlowMatch" in type(scheduler).__name__:
        if config.get("use_dynamic_shifting"):
            raise UserError(
                f"{type(scheduler).__name__} has use_dynamic_shifting=True, a shift by the picture's size; training needs a "
                "fixed one: set it to False and give shift."
            )
        return Flow(config.num_train_timesteps, config.get("flow_shift") or config.get("shift") or 1.0)
    return Diffusion(scheduler)


class Diffusion:
    """Noise of a fixed variance at every one of `steps` timesteps; the noise, the velocity or the sample is predicted."""

    def __init__(self, scheduler):
        # Many folders' own scheduler (Euler, PNDM) adds noise on another scale than the model was trained with.
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.steps, kind = self.scheduler.config.num_train_timesteps, self.scheduler.config.prediction_type
        targets = {
            "epsilon": lambda x, noise, k: noise,
            "v_prediction": self.scheduler.get_velocity,
            "sample": lambda x, noise, k: x,
        }
        if kind not in targets:
            raise UserError(f"prediction_type={kind} of the scheduler is unknown; allowed are: {', '.join(targets)}.")
        self.target = targets[kind]

    def noisy(self, x: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, h, w] with noise at steps k [B] of 0 .. steps - 1, and the timesteps [B] that the denoiser is told."""
        return self.scheduler.add_noise(x, noise, k), k


class Flow:
    """Straight lines from pictures to noise, x_s = (1 - s) x + s noise, along which the velocity noise - x is predicted.

    shift: s = shift u / (1 + (shift - 1) u) of u drawn evenly, more of the noisy end for large pictures (Stable Diffusion
    3's paper, Section 5.3.2); the same as in drawing. The denoiser is told s * steps.
    """

    def __init__(self, steps: int, shift: float):
        self.steps, self.shift = steps, shift

    def share(self, k: Tensor) -> Tensor:
        """s, the share of noise at steps k."""
        u = (k + 1) / self.steps
        return self.shift * u / (1 + (self.shift - 1) * u)

    def noisy(self, x: Tensor, noise: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, h, w] with noise at steps k [B] of 0 .. steps - 1, and the timesteps [B] that the denoiser is told."""
        s = self.share(k)
        along = s[:, None, None, None].to(x)
        return (1 - along) * x + along * noise, s * self.steps

    def target(self, x: Tensor, noise: Tensor, k: Tensor) -> Tensor:
        return noise - x
