"""What people look at: figures, and pages that hold them."""
