"""Commands that turn raw text and the files of tasks into TFRecords, and what they do."""
