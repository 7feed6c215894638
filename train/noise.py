"""Random numbers of sampling: a pure function of (seed, image, position, depth, code), whatever the batch or process.

Philox gives every (seed, image, position, depth) two 32-bit keys; a keyed integer hash then gives each code of the
codebook its own Gumbel noise, on the device, without a generator and without the host waiting.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
_WEYL = (0x9E3779B9, 0xBB67AE85)
_HASH = (0x7FEB352D, 0x846CA68B - 2**32)  # "lowbias32" (C. Wellons, hash-prospector), as signed 32-bit numbers


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Philox4x32-10: four int64 tensors holding 32-bit words, and a 64-bit seed, to four such tensors."""
    a, b, c, d = counter
    keys = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # wraps to the right 64 bits
        a, b = ((right >> 32) & _WORD) ^ b ^ keys[0], right & _WORD
        c, d = ((left >> 32) & _WORD) ^ d ^ keys[1], left & _WORD
        keys = [(key + weyl) & _WORD for key, weyl in zip(keys, _WEYL, strict=True)]
    return a, b, c, d


def code_keys(seed: int, images: Tensor, num_positions: int, depth: int) -> Tensor:
    """Return the keys of every code to be drawn: images [B] int64 (their indices) -> int32 [B, L, D, 2]."""
    positions = torch.arange(num_positions, device=images.device)[:, None].expand(-1, depth)
    depths = torch.arange(depth, device=images.device).expand(num_positions, -1)
    image = images[:, None, None].expand(-1, num_positions, depth)
    first, second, *_ = philox((positions.expand_as(image), depths.expand_as(image), image & _WORD, image >> 32), seed)
    return (torch.stack([first, second], -1) - 2**31).to(torch.int32)


def gumbel(keys: Tensor, codes: Tensor) -> Tensor:
    """Draw standard Gumbel noise, float32, for keys [B, 2] and codes int32 [V] or [B, V] -> [B, V]."""
    bits = codes * (_WEYL[0] - 2**32) + keys[:, :1]  # as a signed 32-bit number
    high = bits >> 16
    bits.bitwise_xor_(high.bitwise_and_(0xFFFF)).mul_(_HASH[0]).bitwise_xor_(keys[:, 1:])
    torch.bitwise_right_shift(bits, 15, out=high)
    bits.bitwise_xor_(high.bitwise_and_(0x1FFFF)).mul_(_HASH[1])
    torch.bitwise_right_shift(bits, 16, out=high)
    bits.bitwise_xor_(high.bitwise_and_(0xFFFF)).bitwise_and_(0x7FFFFFFF)
    # 31 bits, small values exact: a small u makes a large noise, and large noises are what win
    uniform = bits.float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()
