"""The shared vocabulary: keys, the statements about them, and their canonical bytes."""
