"""What the speed of skelact is measured against."""
