"""A convolution that is fast inside a loop, also on a CPU.

All training here is a loop inside one program. XLA:CPU runs a convolution inside a loop fast only in one order of its
dimensions, which the derivatives do not have: these are 30 to 40 times slower. So on a CPU the derivatives are
written here as convolutions in that order, and 3x3 convolutions of many channels as Winograd's products, which need
2.25 times fewer multiplications (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

ORDER = ("NHWC", "HWIO", "NHWC")  # the one that XLA:CPU runs fast inside a loop
MANY_CHANNELS = 32  # from here on Winograd's products are faster than XLA's convolution
CACHE_BYTES = 2**23  # larger arrays are processed in chunks that stay in a core's cache
CHUNK_ROWS = 512  # of each product, at least
SHARED = 2**17  # rows times channels: products of fewer are not shared among cores


def convolution(x: chex.Array, kernel: chex.Array, *, stride: int = 1, precision: Any = None) -> chex.Array:
    """Convolve [B, H, W, C] with a kernel [size, size, C, features], size odd, in the form that its platform runs fast.

    The padding is `size // 2`, so the result is [B, ceil(H / stride), ceil(W / stride), features]; `precision` is a
    `jax.lax.Precision`. The platform is chosen when the program is lowered. On a CPU the result is not
    forward-differentiable (`jax.jvp`).
    """
    on_cpu = partial(_product if kernel.shape[0] == 1 else _convolution, stride, precision)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=partial(_xla, stride, precision))


def _xla(stride, precision, x, kernel, padding=None):
    lo = kernel.shape[0] // 2
    padding = padding or ((lo, lo), (lo, lo))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=ORDER, precision=precision
    )


def _product(stride, precision, x, kernel):
    """Compute a 1x1 convolution."""
    return jnp.matmul(x[:, ::stride, ::stride], kernel[0, 0], precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(stride, precision, x, kernel):
    if stride == 1 and _suits_winograd(x, kernel.shape):
        return _winograd(x, kernel, precision)
    return _xla(stride, precision, x, kernel)


def _forward(stride, precision, x, kernel):
    return _convolution(stride, precision, x, kernel), (x, kernel)


def _backward(stride, precision, residuals, dy):
    x, kernel = residuals
    if stride == 1 and _suits_winograd(x, kernel.shape):
        dkernel = _winograd_kernel_gradient(x, dy, precision)
    elif stride == 1 and x.shape[3] < MANY_CHANNELS:
        dkernel = _kernel_gradient(x, dy, kernel.shape[0], precision)
    else:
        dkernel = _kernel_gradient_of_patches(x, dy, kernel.shape[0], stride, precision)
    return _input_gradient(x.shape, kernel, dy, stride, precision), dkernel


_convolution.defvjp(_forward, _backward)


def _input_gradient(shape, kernel, dy, stride, precision):
    """Compute the gradient by an input of shape [B, H, W, C]: a convolution of stride 1 with the flipped kernel."""
    if stride == 2 and kernel.shape[0] == 3 and _even(shape):  # each tap of the kernel reads a quarter of the pixels
        taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(2, 2, 2, 2, *kernel.shape[2:])[::-1, :, ::-1]
        taps = taps.transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, kernel.shape[3], -1)
        return _interleave(_xla(1, precision, dy, taps, ((0, 1), (0, 1))))
    between = ((0, n - (m - 1) * stride - 1, stride - 1) for n, m in zip(shape[1:3], dy.shape[1:3], strict=True))
    dy = jax.lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *between, (0, 0, 0)))
    return _convolution(1, precision, dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _kernel_gradient(x, dy, size, precision):
    """Compute the kernel's gradient at stride 1 by convolutions with the input's channels as the batch, samples as the
    channels and dy as the kernel."""
    padding = ((size // 2, size // 2),) * 2

    def of_chunk(x, dy):
        return _xla(1, precision, x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)

    return _sum_over_chunks(of_chunk, x, dy, 32).transpose(1, 2, 0, 3)


def _kernel_gradient_of_patches(x, dy, size, stride, precision):
    """Compute the kernel's gradient at any stride by products of the patches of a few images with dy."""
    height, width = (stride * (n - 1) + 1 for n in dy.shape[1:3])
    channels = x.shape[3]
    x = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))

    def of_chunk(x, dy):
        taps = [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]
        return _product_over_rows(jnp.concatenate(taps, axis=-1), dy, precision)

    images = max(1, CHUNK_ROWS // (dy.shape[1] * dy.shape[2]))
    return _sum_over_chunks(of_chunk, x, dy, images).reshape(size, size, channels, -1)


def _sum_over_chunks(function, x, dy, images):
    """Sum `function(x, dy)` over chunks of at most so many images, whose intermediate results stay in the cache."""
    images = _divisor(len(x), images)
    x, dy = (z.reshape(-1, images, *z.shape[1:]) for z in (x, dy))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, x[0], dy[0]))

    def step(total, chunk):
        return jax.tree.map(jnp.add, total, function(*chunk)), None

    return jax.lax.scan(step, zeros, (x, dy))[0]


def _product_over_rows(x, y, precision):
    """Multiply [..., C] and [..., F], summed over all rows, to [C, F]."""
    x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())), precision=precision)


def _interleave(x):
    """Rearrange [B, H, W, 4 C], the four of a tile of 2x2, to [B, 2 H, 2 W, C]."""
    batch, height, width, _ = x.shape
    return x.reshape(batch, height, width, 2, 2, -1).swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, -1)


def _even(shape):
    return shape[1] % 2 == shape[2] % 2 == 0


def _suits_winograd(x, kernel_shape):
    size, _, channels, features = kernel_shape
    many = min(channels, features) >= MANY_CHANNELS
    return size == 3 and many and _even(x.shape) and x.dtype in (jnp.float32, jnp.float64)


# Winograd's F(2x2, 3x3): an output tile of 2x2 from an input tile of 4x4 is Aᵀ[(G k Gᵀ) ⊙ (Bᵀ x B)]A, where ⊙ becomes a
# matrix product over the channels. Each function is one of the small matrices, applied along one axis of a tile.


def _b_transposed(x: Sequence) -> tuple:
    return x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]


def _g(k: Sequence) -> tuple:
    return k[0], (k[0] + k[1] + k[2]) * 0.5, (k[0] - k[1] + k[2]) * 0.5, k[2]


def _g_transposed(u: Sequence) -> tuple:
    return u[0] + (u[1] + u[2]) * 0.5, (u[1] - u[2]) * 0.5, (u[1] + u[2]) * 0.5 + u[3]


def _a(y: Sequence) -> tuple:
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _a_transposed(m: Sequence) -> tuple:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _both_axes(matrix: Callable, tile: Sequence[Sequence]) -> list:
    """Compute `M t Mᵀ` of a tile, a nested list of arrays."""
    columns = [matrix(column) for column in zip(*tile, strict=True)]
    return [list(matrix(row)) for row in zip(*columns, strict=True)]


def _input_tiles(x):
    """Transform (`Bᵀ x B`) the 4x4 tiles of [B, H, W, C], padded by one: each element [B * H/2 * W/2, C]."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    element = lambda i, j: x[:, i : i + height - 1 : 2, j : j + width - 1 : 2].reshape(-1, channels)  # noqa: E731
    return _both_axes(_b_transposed, [[element(i, j) for j in range(4)] for i in range(4)])


def _winograd(x, kernel, precision):
    batch, height, width, _ = x.shape
    kernels = _both_axes(_g, kernel)

    def of_chunk(x):
        products = jax.tree.map(partial(jnp.matmul, precision=precision), _input_tiles(x), kernels)
        tiles = jnp.concatenate([y for row in _both_axes(_a_transposed, products) for y in row], axis=-1)
        return _interleave(tiles.reshape(-1, height // 2, width // 2, tiles.shape[-1]))

    chunks = x.reshape(-1, _images_a_chunk(x), *x.shape[1:])
    return jax.lax.map(of_chunk, chunks).reshape(batch, height, width, -1)


def _winograd_kernel_gradient(x, dy, precision):
    def of_chunk(x, dy):
        tiles = [[dy[:, i::2, j::2].reshape(-1, dy.shape[-1]) for j in range(2)] for i in range(2)]
        product = partial(_product_over_rows, precision=precision)
        return jax.tree.map(product, _input_tiles(x), _both_axes(_a, tiles))

    total = _sum_over_chunks(of_chunk, x, dy, _images_a_chunk(x))
    return jnp.stack([jnp.stack(row) for row in _both_axes(_g_transposed, total)])


def _images_a_chunk(x):
    """Return how many images of [B, H, W, C] to take at a time; it divides B."""
    batch, height, width, channels = x.shape
    if 4 * x.size * x.dtype.itemsize <= CACHE_BYTES:
        return batch
    tiles = max(CHUNK_ROWS, SHARED // channels)
    return _divisor(batch, tiles * 4 // (height * width))


def _divisor(count, most):
    """Return the largest divisor of `count` that is not above `most`, or 1."""
    return next((n for n in range(min(most, count), 0, -1) if count % n == 0), 1)
