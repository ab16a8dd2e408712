"""Images: the embedded digits, splits, labelled subsets and transforms."""

from collections.abc import Callable

from attention_transfer.data.digits import digits as digits
from attention_transfer.data.files import read_image as read_image
from attention_transfer.data.images import ArrayImages as ArrayImages
from attention_transfer.data.images import FileImages as FileImages
from attention_transfer.data.images import Images as Images
from attention_transfer.data.images import ImageSet as ImageSet
from attention_transfer.data.images import Split as Split
from attention_transfer.data.images import Splits as Splits
from attention_transfer.data.subset import check_subset as check_subset
from attention_transfer.data.subset import labelled_subset as labelled_subset
from attention_transfer.data.transforms import RANDOM_ERASING as RANDOM_ERASING
from attention_transfer.data.transforms import Augment as Augment
from attention_transfer.data.transforms import Normalise as Normalise
from attention_transfer.data.transforms import Transform as Transform
from attention_transfer.data.transforms import choose_augment as choose_augment
from attention_transfer.data.transforms import eval_pixels as eval_pixels
from attention_transfer.data.transforms import eval_transform as eval_transform
from attention_transfer.data.transforms import train_pixels as train_pixels
from attention_transfer.errors import UserError, nearest

DATA: dict[str, Callable[[], Splits]] = {"digits": digits}


def load_data(name: str) -> Splits:
    """Load a data set by name.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    if name not in DATA:
        raise UserError(f"there is no data set {name!r}; {nearest(name, DATA)}")
    return DATA[name]()
