"""What memory is compared with: one small class each, behind the same seam (:mod:`pipeline.evaluate.seam`)."""
