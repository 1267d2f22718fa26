"""Networks of the published methods, one file each, and the face geometry they share."""
