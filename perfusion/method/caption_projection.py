"""The layers through which some transformers (PixArt, Sana) pass the text encoder's output before any cross-attention.

W_K and W_V are linear maps of the projected encodings, and the projection is not linear. So e, i*, C and the energies live
behind it, where the edit is what the paper says it is; a pipeline's `prompt_embeds` stay what they are, in front of it.
"""

import threading

import torch
from torch import Tensor, nn


def caption_projection(model: nn.Module) -> list[nn.Module]:
    """The model's layers between text encoder and cross-attentions, in order: none for a UNet."""
    own = getattr(model, "caption_projection", None)
    own = own.own[0] if isinstance(own, WidenedCaptions) else own
    norm = getattr(model, "caption_norm", None)  # Sana's
    return [part for part in (own, norm) if part is not None]


class WidenedCaptions(nn.Module):
    """In the place of a caption projection: takes encodings [B, T, c] with 2J columns beside them, or twice that, V's part first.

    What it returns is what stock code goes on with, the projected encodings of V's part [B, T, d]. The columns, and the
    projected encodings of K's part, it keeps for the widened layers, which `read` them within the same call of the model.
    """

    def __init__(self, parts: list[nn.Module], J: int):
        super().__init__()
        self._modules = parts[0]._modules  # the same names in a state_dict, and moved with the model
        self.own, self.columns = parts, 2 * J
        self.forget()

    def forget(self) -> None:
        """Drop what is kept for the layers."""
        self._calls: dict[int, tuple] = {}  # by thread: what was given, its version, V's columns, K's part

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_calls": {}}  # of a copy, or in a file: it belongs to tensors of this process

    def project(self, e: Tensor) -> Tensor:
        for part in self.own:
            e = part(e)
        return e

    def forward(self, x: Tensor) -> Tensor:
        c = self.own[0].linear_1.in_features
        width, version = c + self.columns, None if x.is_inference() else x._version
        # Of an encoding that was seen already and not written to since, K's part is kept, as the layers keep K and V.
        fresh = torch.compiler.is_compiling() or torch.is_grad_enabled() or x.is_inference()
        given, seen, _, last = self._calls.get(_thread(), (None,) * 4)
        if fresh or given is not x or seen != version:
            last = None
            if x.shape[-1] > width:
                last = torch.cat([self.project(_whole(x[..., width : width + c])), x[..., width + c :]], -1)
        self._calls[_thread()] = x, version, x[..., c:width], last
        return self.own[0](_whole(x[..., :c]))

    def read(self, e: Tensor, part: str) -> tuple[Tensor, Tensor]:
        """What the model was given, and the input [B, T, d + 2J] of a widened layer: e is what stock code hands it."""
        given, _, columns, last = self._calls[_thread()]
        return given, last if part == "k" and last is not None else torch.cat([e, columns], -1)


def _thread() -> int:
    """Whose call it is. One for all in training, whose checkpoints are computed again in threads of autograd's."""
    return 0 if torch.is_grad_enabled() or torch.compiler.is_compiling() else threading.get_ident()


def _whole(e: Tensor) -> Tensor:
    """Not a view: it might be multiplied in another order, and a prompt without a concept should not notice any."""
    return e.contiguous()
