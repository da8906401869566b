"""What sessions need for streams, and for those who learn one example after the other."""
