"""Published data sets as their official archives unpack, with their official splits: one file each."""

from attention_transfer.data.layouts.annotations import boxes as boxes
from attention_transfer.data.layouts.annotations import masks as masks
from attention_transfer.data.layouts.annotations import read_mask as read_mask
from attention_transfer.data.layouts.layout import Boxes as Boxes
from attention_transfer.data.layouts.layout import Layout as Layout
from attention_transfer.data.layouts.layout import Masks as Masks
from attention_transfer.data.layouts.layout import Published as Published
from attention_transfer.data.layouts.registry import find_layout as find_layout
from attention_transfer.data.layouts.registry import layouts as layouts
from attention_transfer.data.layouts.voc import VOC_CLASSES as VOC_CLASSES
from attention_transfer.data.layouts.voc import VOC_VOID as VOC_VOID
from attention_transfer.data.layouts.voc import voc_segmentation as voc_segmentation
