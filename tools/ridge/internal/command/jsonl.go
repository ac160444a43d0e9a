package command

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ridgekv/ridge/client"
	"github.com/ridgekv/ridge/proto/keys"
)

// jsonRow is a line of load and dump: key or key_b64, value or value_b64.
type jsonRow struct {
	Key      *string `json:"key,omitempty"`
	KeyB64   *string `json:"key_b64,omitempty"`
	Value    *string `json:"value,omitempty"`
	ValueB64 *string `json:"value_b64,omitempty"`
	// ExpiresAt is when the row goes away; it is left out when never.
	ExpiresAt uint64 `json:"expires_at_unix_ms,omitempty"`
	// CommitTS is in what scan prints; load has no use for it.
	CommitTS uint64 `json:"commit_ts,omitempty"`
}

// maxLineBytes bounds one line: the largest value, every byte escaped as six.
const maxLineBytes = 6*(keys.MaxValueSizeBytes+keys.MaxKeySizeBytes) + 1024

// jsonRowOf is the line of a row.
func jsonRowOf(r client.Row) jsonRow {
	var out jsonRow
	out.Key, out.KeyB64 = textOrBase64(r.Key)
	out.Value, out.ValueB64 = textOrBase64(r.Value)
	if r.ExpiresAt != 0 {
		out.ExpiresAt = r.ExpiresAt.Physical()
	}
	return out
}

func textOrBase64(b []byte) (text, b64 *string) {
	s := string(b)
	if utf8.ValidString(s) {
		return &s, nil
	}
	s = base64.StdEncoding.EncodeToString(b)
	return nil, &s
}

// parseRow reads a line. What JSON would silently change (bytes that are no
// UTF-8, lone surrogates) is refused.
func parseRow(line []byte) (key, value []byte, expiresAt uint64, err error) {
	if !utf8.Valid(line) {
		return nil, nil, 0, errors.New("not valid UTF-8: give such bytes as key_b64 or value_b64")
	}
	var r jsonRow
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil, 0, errors.New("the line is cut off: the JSON object does not end")
		}
		return nil, nil, 0, fmt.Errorf("not a JSON object with key and value: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, 0, errors.New("more than one object on the line")
	}
	if key, err = pick("key", r.Key, r.KeyB64, line); err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return nil, nil, 0, err
	}
	if value, err = pick("value", r.Value, r.ValueB64, line); err == nil {
		err = checkValue(value)
	}
	return key, value, r.ExpiresAt, err
}

func pick(name string, text, b64 *string, line []byte) ([]byte, error) {
	switch {
	case text != nil && b64 != nil:
		return nil, fmt.Errorf("both %s and %s_b64", name, name)
	case text != nil:
		if strings.ContainsRune(*text, utf8.RuneError) && !bytes.ContainsRune(line, utf8.RuneError) &&
			!bytes.Contains(bytes.ToLower(line), []byte(`\ufffd`)) {
			return nil, fmt.Errorf("%s holds half a surrogate pair: give such bytes as %s_b64", name, name)
		}
		return []byte(*text), nil
	case b64 != nil:
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return nil, fmt.Errorf("%s_b64: %w", name, err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("neither %s nor %s_b64", name, name)
}

// lineReader reads lines and knows where it is.
type lineReader struct {
	r *bufio.Reader
	// line counts the lines read, offset the bytes.
	line, offset int64
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 1<<20)}
}

// next returns the next line without its end, in memory of its own; io.EOF
// after the last.
func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLineBytes:
			return nil, fmt.Errorf("line %d: longer than any row (%d bytes)", l.line+1, maxLineBytes)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && (!errors.Is(err, io.EOF) || len(line) == 0):
			return nil, err
		}
		l.line++
		l.offset += int64(len(line))
		return bytes.TrimRight(line, "\r\n"), nil
	}
}
