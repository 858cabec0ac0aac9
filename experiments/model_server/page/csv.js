// Tables as text: RFC 4180, with commas, semicolons or tabs.

const BOM = "\ufeff";

// What parts the cells of the first line: what it has most of outside of quotes; null where it has
// one cell, and commas are part of the text.
function separatorOf(text) {
  const [line] = text.slice(0, 1 << 16).replace(/"(?:[^"]|"")*"/g, "").split(/\r?\n|\r/, 1);
  const counts = [",", ";", "\t"].map((mark) => [line.split(mark).length, mark]);
  const [[most, mark]] = counts.sort((a, b) => b[0] - a[0]);
  return most > 1 ? mark : null;
}

// {rows, separator, end, bom} of a file, of which a quoted cell may hold anything. A quote within a
// cell that does not begin with one is a character as others.
export function parseCsv(file) {
  const bom = file.startsWith(BOM) ? BOM : "", text = file.slice(bom.length);
  const separator = separatorOf(text), end = text.includes("\r\n") ? "\r\n" : "\n";
  const rows = [];
  let row = [], at = 0;
  while (at < text.length) {
    let cell = "";
    if (text[at] === '"') {
      const begun = rows.length + 1;
      for (at += 1; ; at += 2) {
        const close = text.indexOf('"', at);
        if (close < 0) throw new Error(`Row ${begun}: a cell begins with a quote (") and none ends it.`);
        cell += text.slice(at, close);
        at = close;
        if (text[at + 1] !== '"') break;
        cell += '"';
      }
      at += 1;
    }
    const rest = at;
    while (at < text.length && text[at] !== separator && text[at] !== "\n" && text[at] !== "\r") at += 1;
    row.push(cell + text.slice(rest, at));
    const mark = text[at];
    at += mark === "\r" && text[at + 1] === "\n" ? 2 : 1;
    if (mark === separator && at < text.length) continue;
    if (mark === separator) row.push("");
    if (row.length > 1 || row[0]) rows.push(row);  // Nothing is in a line without cells.
    row = [];
  }
  return { rows, separator, end, bom };
}

export function writeCsv(rows, { separator: read, end, bom }) {
  const separator = read ?? ",";
  const cell = (value) => {
    const text = String(value ?? "");
    return /["\r\n]/.test(text) || text.includes(separator) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return bom + rows.map((row) => row.map(cell).join(separator) + end).join("");
}
