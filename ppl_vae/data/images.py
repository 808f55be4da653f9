"""Image sets as flat rows of pixels, read from the files where they lie."""

import contextlib
import gzip
import math
import struct
import sys
import zlib
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vae.errors import DataError

__all__ = ["DynamicBinary", "ImageSet", "images"]

_DEFAULT_ROOT = Path("data")
_SYSTEM_ROOT = Path("/usr/share/datasets")  # where Debian's packages put image sets
_BINARY_SEED = 777


class DynamicBinary:
    """Binary images that are drawn anew, x ~ Bernoulli(p), each time rows are taken.

    Resampling the training images guards against overfitting to one draw of the grey pixels. The draws come from
    torch's default generator, on the device of the probabilities.

    Parameters
    ----------
    probabilities : torch.Tensor
        [n, pixels], in [0, 1].

    Raises
    ------
    DataError
        A probability outside [0, 1], or NaN.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016). Importance weighted autoencoders, section 5.1. ICLR.

    Examples
    --------
    >>> x = DynamicBinary(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    >>> len(x), x[torch.tensor([0, 2])].tolist()
    (3, [[0.0, 1.0], [1.0, 1.0]])
    """

    def __init__(self, probabilities: torch.Tensor) -> None:
        if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
            low, high = probabilities.min().item(), probabilities.max().item()
            raise DataError(
                f"DynamicBinary takes probabilities in [0, 1]; the values given span [{low:g}, {high:g}]. "
                "Divide pixels by their largest value first."
            )
        self.probabilities = probabilities

    @property
    def shape(self) -> torch.Size:
        """[n, pixels]."""
        return self.probabilities.shape

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, index: Any) -> torch.Tensor:
        p = self.probabilities[index]
        # On a CPU four times as fast as torch.bernoulli, which draws in double precision.
        return torch.rand_like(p).lt_(p)

    def to(self, like: torch.Tensor) -> "DynamicBinary":
        """The same images in the dtype and on the device of `like`, where they are then drawn.

        Examples
        --------
        >>> DynamicBinary(torch.ones(2, 3)).to(torch.empty(0, dtype=torch.float64))[:1].dtype
        torch.float64
        """
        moved = copy(self)
        moved.probabilities = self.probabilities.to(like)
        return moved


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A named set of images in three parts.

    Attributes
    ----------
    name : str
        As given to `images`.
    train, validation, test : torch.Tensor
        [n, pixels], float32, in [0, 1]; pixels = channels * height * width. With binarize="dynamic" `train` is a
        `DynamicBinary`.
    shape : tuple of int
        (channels, height, width) of one image.
    labels : dict
        "train", "validation", "test" to [n], int64; empty where there are no label files.

    Examples
    --------
    >>> digits = images("digits")
    >>> digits.train.shape, digits.test[0].reshape(digits.shape).shape, digits.labels["test"].shape
    (torch.Size([1197, 64]), torch.Size([1, 8, 8]), torch.Size([300]))
    """

    name: str
    train: torch.Tensor | DynamicBinary
    validation: torch.Tensor
    test: torch.Tensor
    shape: tuple[int, int, int]
    labels: dict[str, torch.Tensor] = field(default_factory=dict)


def images(name: str, root: str | Path | None = None, binarize: str | None = None, download: bool = False) -> ImageSet:
    """Read an image set.

    Parameters
    ----------
    name : str
        "digits" (scikit-learn's 8x8, always there: 1197, 300 and 300 images), or 28x28 images: "mnist",
        "fashion-mnist", "kmnist", "emnist" (the balanced split, turned upright). Of these the last sixth of the
        training images is the validation set.
    root : path-like, optional
        The folder of the IDX files (raw or .gz), or the root of torchvision's layout. Without it the folders `data`
        and `/usr/share/datasets`, that of Debian's package dataset-fashion-mnist, are searched.
    binarize : str, optional
        None: grey pixels in [0, 1]. "threshold": p >= 1/2. "fixed": one draw x ~ Bernoulli(p), always the same.
        "dynamic": the training images are drawn anew each time they are taken, the others are "fixed".
    download : bool
        Let torchvision fetch the files when they are not there.

    Returns
    -------
    ImageSet
        Rows [n, pixels], float32, in [0, 1].

    Raises
    ------
    DataError
        Unknown name or option; no files where it looked; a truncated or foreign file; a torch and torchvision that
        do not fit each other, when downloading.

    Examples
    --------
    >>> images("digits", binarize="threshold").train.unique()
    tensor([0., 1.])
    """
    read = _known(name.lower().replace("_", "-"), _SETS, "image set")
    binary = _known(binarize, _BINARIZE, "binarize")
    return binary(read(root, download))


def _known(key: Any, table: dict[Any, Any], what: str) -> Any:
    if key not in table:
        near = get_close_matches(str(key), map(str, table), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{what} {key!r} is not known; there are: {', '.join(map(repr, table))}.{hint}")
    return table[key]


# Grey to binary. Each part has a generator of its own, so that "fixed" and "dynamic" share their held-out parts.


def _threshold(grey: ImageSet) -> ImageSet:
    parts = {part: (getattr(grey, part) >= 0.5).float() for part in ("train", "validation", "test")}
    return replace(grey, **parts)


def _fixed(grey: ImageSet) -> ImageSet:
    return replace(grey, train=_draw(grey.train, 0), validation=_draw(grey.validation, 1), test=_draw(grey.test, 2))


def _dynamic(grey: ImageSet) -> ImageSet:
    assert isinstance(grey.train, torch.Tensor)
    train = DynamicBinary(grey.train)
    return replace(grey, train=train, validation=_draw(grey.validation, 1), test=_draw(grey.test, 2))


def _draw(probabilities: Any, part: int) -> torch.Tensor:
    uniform = np.random.default_rng((_BINARY_SEED, part)).random(tuple(probabilities.shape), dtype=np.float32)
    return (torch.from_numpy(uniform) < probabilities).float()


_BINARIZE: dict[str | None, Callable[[ImageSet], ImageSet]] = {
    None: lambda grey: grey,
    "threshold": _threshold,
    "fixed": _fixed,
    "dynamic": _dynamic,
}


# The sets


def _digits(root: str | Path | None, download: bool) -> ImageSet:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.from_numpy((pixels[order] / 16).astype(np.float32))
    y = torch.from_numpy(labels[order].astype(np.int64))
    sizes = (len(x) - 600, 300, 300)
    train, validation, test = x.split(sizes)
    parts = dict(zip(("train", "validation", "test"), y.split(sizes), strict=True))
    return ImageSet("digits", train, validation, test, (1, 8, 8), parts)


@dataclass(frozen=True)
class _IdxSet:
    """An image set of four IDX files in the manner of MNIST."""

    name: str
    torchvision_class: str
    prefix: str = ""
    parts: tuple[str, str] = ("train", "t10k")
    options: tuple[tuple[str, str], ...] = ()
    transposed: bool = False

    def __call__(self, root: str | Path | None, download: bool) -> ImageSet:
        files = self._find(root)
        if files is None and download:
            _download(self, Path(root) if root is not None else _DEFAULT_ROOT)
            files = self._find(root)
        if files is None:
            raise DataError(
                f"image set '{self.name}': no files {self._stem(0, 'images', 3)}[.gz] and "
                f"{self._stem(1, 'images', 3)}[.gz] in any of: {', '.join(map(str, self._folders(root)))}. "
                "Say where they are (--root, or root=), or let torchvision fetch them (--download, or download=True)."
            )
        return self._read(files)

    def _folders(self, root: str | Path | None) -> list[Path]:
        roots = [_DEFAULT_ROOT, _SYSTEM_ROOT] if root is None else [Path(root).expanduser()]
        below = (Path(), Path(self.torchvision_class, "raw"), Path(self.name))
        return [folder / path for folder in roots for path in below]

    def _stem(self, part: int, what: str, ndim: int) -> str:
        return f"{self.prefix}{self.parts[part]}-{what}-idx{ndim}-ubyte"

    def _find(self, root: str | Path | None) -> list[Path | None] | None:
        """Training images and labels, test images and labels, from the first folder that has both images."""
        for folder in self._folders(root):
            stems = [self._stem(part, *kind) for part in (0, 1) for kind in (("images", 3), ("labels", 1))]
            files = [_raw_or_gz(folder / stem) for stem in stems]
            if files[0] and files[2]:
                return files
        return None

    def _read(self, files: list[Path | None]) -> ImageSet:
        train, y_train = self._part(files[0], files[1])
        test, y_test = self._part(files[2], files[3])
        if len(train) < 2 or not len(test) or train.shape[1:] != test.shape[1:]:
            raise DataError(
                f"image set '{self.name}': training images {list(train.shape)} and test images {list(test.shape)}; "
                f"images of one size, at least two and one, were expected. Check {files[0]} and {files[2]}."
            )
        held_out = max(1, len(train) // 6)
        sizes = (len(train) - held_out, held_out)
        x, validation = _pixels(train).split(sizes)
        labels = {}
        if y_train is not None and y_test is not None:
            labels = dict(zip(("train", "validation", "test"), (*y_train.split(sizes), y_test), strict=True))
        return ImageSet(self.name, x, validation, _pixels(test), (1, *train.shape[1:]), labels)

    def _part(self, image_file: Path | None, label_file: Path | None) -> tuple[np.ndarray, torch.Tensor | None]:
        assert image_file is not None
        pixels = _read_idx(image_file, ndim=3)
        upright = pixels.transpose(0, 2, 1) if self.transposed else pixels
        if label_file is None:
            return upright, None
        labels = _read_idx(label_file, ndim=1)
        if len(labels) != len(pixels):
            raise DataError(f"{label_file}: {len(labels)} labels for the {len(pixels)} images of {image_file}.")
        return upright, torch.from_numpy(labels.astype(np.int64))


_SETS: dict[str, Callable[[str | Path | None, bool], ImageSet]] = {
    "digits": _digits,
    "mnist": _IdxSet("mnist", "MNIST"),
    "fashion-mnist": _IdxSet("fashion-mnist", "FashionMNIST"),
    "kmnist": _IdxSet("kmnist", "KMNIST"),
    "emnist": _IdxSet(
        "emnist", "EMNIST", "emnist-balanced-", ("train", "test"), (("split", "balanced"),), transposed=True
    ),
}


# IDX files


def _raw_or_gz(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)


def _pixels(grey: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(grey.reshape(len(grey), -1).astype(np.float32)).div_(255)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Bytes of an IDX file: 0, 0, 8 (unsigned bytes), ndim, the sizes as big-endian integers, then the data."""
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). It may be cut short: copy or download it again.") from error
    start = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) < start:
        raise DataError(
            f"{path}: is not an IDX file of bytes with {ndim} dimensions: it starts with {content[:4].hex(' ')!r} "
            f"where '00 00 08 {ndim:02x}' was expected. Check that the file is what its name says."
        )
    sizes = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != math.prod(sizes):
        raise DataError(
            f"{path}: holds {len(content) - start} bytes of data where its header {list(sizes)} says "
            f"{math.prod(sizes)}. It is cut short or damaged: copy or download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


# Downloads, the only use of torchvision


def _download(image_set: _IdxSet, root: Path) -> None:
    fetch = getattr(_torchvision_datasets(), image_set.torchvision_class)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            fetch(str(root), train=True, download=True, **dict(image_set.options))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"image set '{image_set.name}': torchvision could not download it to {root} ({error}). Check the network "
            "and the folder, or copy the files there by hand and give --root, or root=."
        ) from error


def _torchvision_datasets() -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise DataError(
            f"torchvision {_version('torchvision')} does not work with torch {_version('torch')} ({error}), and only "
            "torchvision downloads images. Install a pair built for each other, in one pip command and from the same "
            "index: for a CPU-only torch pass PyTorch's cpu index to pip for both. Files that are already there need "
            "no torchvision."
        ) from error
    return datasets


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
