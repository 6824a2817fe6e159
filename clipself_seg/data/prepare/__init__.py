"""From the layout of the official archives to label maps with indices of the vocabularies."""
