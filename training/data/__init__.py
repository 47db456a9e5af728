"""What the pictures come from: data sets in their own layouts, and the shards that training reads."""
