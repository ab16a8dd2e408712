"""Figures. This room draws what it is given; it loads and trains nothing."""

from attention_transfer.viewing.attention_figure import Panel as Panel
from attention_transfer.viewing.attention_figure import PanelRow as PanelRow
from attention_transfer.viewing.attention_figure import attention_figure as attention_figure
from attention_transfer.viewing.charts import Point as Point
from attention_transfer.viewing.charts import accuracy_chart as accuracy_chart
from attention_transfer.viewing.charts import cost_chart as cost_chart
from attention_transfer.viewing.charts import curve_chart as curve_chart
from attention_transfer.viewing.charts import learning_curves as learning_curves
from attention_transfer.viewing.frames import save_frames as save_frames
from attention_transfer.viewing.heat_maps import HeatMap as HeatMap
from attention_transfer.viewing.heat_maps import heat_maps as heat_maps
from attention_transfer.viewing.overlays import Scale as Scale
from attention_transfer.viewing.reliability import Bin as Bin
from attention_transfer.viewing.reliability import reliability_diagram as reliability_diagram
from attention_transfer.viewing.sheets import SheetRow as SheetRow
from attention_transfer.viewing.sheets import attention_sheet as attention_sheet
from attention_transfer.viewing.sheets import save_sheet as save_sheet
from attention_transfer.viewing.style import inline_svg as inline_svg
from attention_transfer.viewing.style import save as save
