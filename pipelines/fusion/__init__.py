"""Early fusion: one column of vectors that hold of each row its picture and its words."""
