"""Scripts that turn raw text into TFRecords."""
