"""The patch transformer: a network on images, conditioned on a class label or on nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._core.checks import check_count
from .arguments import batch_of_times
from .attention import MultiheadAttention
from .kits import DENSE
from .maps import PositionTable
from .mlp import MLP
from .parameters import optim_groups, reset_parameters_
from .time_embedding import TimeEmbedding

__all__ = ["PatchTransformer"]

_INIT_SCHEME = "xavier_uniform"


class ModulatedBlock(nn.Module):
    """A pre-norm layer of self-attention and MLP, both modulated by features c of time and label:

        x + gate(c) * f(scale(c) * norm(x) + shift(c)).

    Scale, shift and gate are affine in c and start at 1, 0 and 0, so that a fresh block hands x on
    unchanged (adaLN-zero).

    Args:
        dim: width D.
        num_heads: heads; divides D.
        norm_module: "rmsnorm" or "layernorm".
    """

    def __init__(self, dim: int, num_heads: int, norm_module: str) -> None:
        super().__init__()
        self.attention_norm = DENSE.norm(dim, norm_module, affine=False)
        self.attention = MultiheadAttention(dim, num_heads)
        self.mlp_norm = DENSE.norm(dim, norm_module, affine=False)
        self.mlp = MLP(dim)
        self.modulation: Any = nn.Linear(dim, 6 * dim)
        self.modulation.starts_as = (1.0, 0.0, 0.0) * 2

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens x (B, T, D), with features c (B, D), to (B, T, D)."""
        numbers = self.modulation(c)[:, None].chunk(6, dim=-1)

        scale, shift, gate = numbers[0:3]
        y = self.attention(torch.addcmul(shift, self.attention_norm(x), scale))
        x = torch.addcmul(x, y, gate)

        scale, shift, gate = numbers[3:6]
        y = self.mlp(torch.addcmul(shift, self.mlp_norm(x), scale))
        return torch.addcmul(x, y, gate)

    def last_maps(self) -> list[nn.Module]:
        """None: by its gates a fresh block hands x on already, and behind a gate that is zero a map
        that is zero would never be trained."""
        return []


class PatchTransformer(nn.Module):
    r"""A small diffusion transformer :math:`V = f_\theta(X, t, Z)` on square images, with a class
    label Z or none.

    An image is cut into square patches, each of which is one token. Tokens get a learned position,
    go through layers that are modulated by time and label, and become patches again. A fresh
    network answers zero.

    Args:
        channels: C.
        image_size: pixels of a side, a multiple of `patch_size`.
        patch_size: pixels of a patch's side.
        num_labels: labels are 1 .. num_labels, and 0 stands for no label, which guidance needs; 0
            makes a network without a condition.
        num_layers: layers, >= 1.
        num_attention_heads: heads; divides `embedding_dim`.
        embedding_dim: width D.
        time_scale: multiplies t inside the time embedding.
        norm_module: "rmsnorm" or "layernorm".

    Raises:
        ValueError: an argument out of range, named as here.

    References: Peebles and Xie 2023, arXiv:2212.09748 (DiT).
    """

    layer_list = "blocks"  # whose number may change (depth.py)

    def __init__(
        self,
        channels: int,
        image_size: int,
        patch_size: int = 4,
        num_labels: int = 0,
        num_layers: int = 3,
        num_attention_heads: int = 4,
        embedding_dim: int = 64,
        time_scale: float = 1000.0,
        norm_module: str = "layernorm",
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("image_size", image_size)
        check_count("patch_size", patch_size)
        check_count("num_labels", num_labels, least=0)
        check_count("num_layers", num_layers)
        check_count("embedding_dim", embedding_dim, least=2)
        if image_size % patch_size:
            raise ValueError(
                f"expected patch_size to divide image_size = {image_size}, got {patch_size}"
            )
        DENSE.check_heads(embedding_dim, num_attention_heads, "num_attention_heads")
        self.channels = channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_labels = num_labels
        self.config: dict[str, Any] = {
            "class": "PatchTransformer",
            "channels": channels,
            "image_size": image_size,
            "patch_size": patch_size,
            "num_labels": num_labels,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "embedding_dim": embedding_dim,
            "time_scale": time_scale,
            "norm_module": norm_module,
        }
        random_state = torch.get_rng_state()
        numbers = channels * patch_size**2
        self.patch_emb = nn.Linear(numbers, embedding_dim)
        self.pos_emb = PositionTable((image_size // patch_size) ** 2, embedding_dim)
        self.time_emb = TimeEmbedding(embedding_dim, time_scale)
        self.label_emb = nn.Embedding(num_labels + 1, embedding_dim) if num_labels else None
        self.blocks = nn.ModuleList(
            ModulatedBlock(embedding_dim, num_attention_heads, norm_module)
            for _ in range(num_layers)
        )
        self.norm = DENSE.norm(embedding_dim, norm_module, affine=False)
        self.modulation: Any = nn.Linear(embedding_dim, 2 * embedding_dim)
        self.modulation.starts_as = (1.0, 0.0)
        self.head: Any = nn.Linear(embedding_dim, numbers)
        self.head.starts_as = (0.0,)

        # What the layers drew by themselves is forgotten: a seed gives the numbers of a reset with
        # that seed.
        torch.set_rng_state(random_state)
        self.reset_parameters()

    def forward(self, X: Tensor, opt_step: Tensor | float | int, Z: Tensor | None = None) -> Tensor:
        """Evaluate V = f(X, t, Z).

        Args:
            X: noisy images, shape (B, C, image_size, image_size); cast to the dtype of the weights.
            opt_step: time t, in [0, 1] for a rectified flow: an int, a float, a 0-d tensor or a
                tensor of shape (B,).
            Z: labels, integers (B,) from 0 (none) to num_labels; None for a network without.

        Returns:
            V of the shape of X, in the dtype of the weights.

        Raises:
            ValueError: a shape that does not fit, a condition that is missing or too much.
            TypeError: images or labels of another kind, a time that is not a number.
            IndexError: a label beyond num_labels.
        """
        self._check(X, Z)
        dtype = self.patch_emb.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        times = batch_of_times(opt_step, X.shape[0], device=X.device, dtype=wide)
        features = self.time_emb(times)
        if self.label_emb is not None:
            assert Z is not None
            features = features + self.label_emb(Z)
        c = nn.functional.silu(features)

        tokens = self._patches(X.to(dtype))
        x = self.patch_emb(tokens) + self.pos_emb(tokens.shape[1])
        for block in self.blocks:
            x = block(x, c)
        scale, shift = self.modulation(c)[:, None].chunk(2, dim=-1)
        return self._image(self.head(torch.addcmul(shift, self.norm(x), scale)))

    def _check(self, X: Tensor, Z: Tensor | None) -> None:
        size = self.image_size
        expected = f"expected X of shape (B, {self.channels}, {size}, {size})"
        if not isinstance(X, Tensor) or not X.is_floating_point():
            got = X.dtype if isinstance(X, Tensor) else type(X).__name__
            raise TypeError(f"{expected}, floating, got {got}")
        if X.ndim != 4 or tuple(X.shape[1:]) != (self.channels, size, size):
            raise ValueError(f"{expected}, got {tuple(X.shape)}")
        if self.label_emb is None:
            if Z is not None:
                raise ValueError("expected no Z: this network has no labels; give Z=None")
            return
        labels = f"expected Z as integer labels (B,) = ({X.shape[0]},), 0 for none"
        if not isinstance(Z, Tensor):
            raise TypeError(f"{labels}, got {type(Z).__name__}")
        if Z.is_floating_point() or Z.is_complex() or Z.dtype == torch.bool:
            raise TypeError(f"{labels}, got {Z.dtype}")
        if tuple(Z.shape) != (X.shape[0],):
            raise ValueError(f"{labels}, got shape {tuple(Z.shape)}")

    def _patches(self, x: Tensor) -> Tensor:
        """Images (B, C, S, S) -> tokens (B, (S / p)^2, C p^2), row by row."""
        p = self.patch_size
        rows = self.image_size // p
        cut = x.reshape(x.shape[0], self.channels, rows, p, rows, p)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, tokens: Tensor) -> Tensor:
        """The inverse of `_patches`."""
        p = self.patch_size
        rows = self.image_size // p
        cut = tokens.reshape(tokens.shape[0], rows, rows, self.channels, p, p)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(
            tokens.shape[0], self.channels, self.image_size, self.image_size
        )

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Two optimiser groups that hold every parameter once: weights of linear maps decay;
        biases, labels and positions don't.

        Raises:
            ValueError: `weight_decay` is negative.
        """
        return optim_groups(self, weight_decay)

    def reset_parameters(self) -> None:
        """Draw all parameters afresh, as the constructor does.

        Linear weights are drawn by xavier_uniform, positions and labels from N(0, 0.1^2); biases
        are 0. Modulations and head start as constants, so that the answer is zero.
        """
        reset_parameters_(self, _INIT_SCHEME)
        if self.label_emb is not None:
            nn.init.normal_(self.label_emb.weight, std=0.1)
