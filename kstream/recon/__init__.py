"""Takes framed readouts, gives regridded, coil-combined k-space and contrast differences."""
