"""`fxhlo.random_bits`: 32 random bits per element, a function of a key, a stream and the element's index."""

from ..spec import Kernel
from .reference import fake, random_bits

KERNEL = Kernel(
    name="random_bits",
    version=1,
    schema="random_bits(Tensor key, Tensor like, *, int stream) -> Tensor",
    reference=random_bits,
    fake=fake,
    dtypes={"key": ("int32",)},
    source="Threefry-2x32: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011",
)
