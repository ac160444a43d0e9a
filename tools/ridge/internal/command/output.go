package command

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// output is how a command answers: a table for people, JSON for programs.
type output struct{ format string }

func (o *output) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "form of the answer (table|json)")
	_ = cmd.RegisterFlagCompletionFunc("output",
		cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *output) check() error {
	if o.format != "table" && o.format != "json" {
		return usagef("--output: %q is neither table nor json", o.format)
	}
	return nil
}

func (o *output) json() bool { return o.format == "json" }

// object writes v as one line of JSON.
func (o *output) object(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows below their header, in columns.
func (o *output) table(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// plain renders bytes on one line of a terminal: as they are when that is
// unambiguous, else quoted as Go does.
func plain(b []byte) string {
	s := string(b)
	if s == "" || s[0] == '"' || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// putBytes adds b to a JSON object under name, or under name_b64 when it is no
// text.
func putBytes(object map[string]any, name string, b []byte) {
	if utf8.Valid(b) {
		object[name] = string(b)
		return
	}
	object[name+"_b64"] = base64.StdEncoding.EncodeToString(b)
}

func spanText(start, end []byte) (from, to string) {
	from, to = "-inf", "+inf"
	if len(start) > 0 {
		from = plain(start)
	}
	if len(end) > 0 {
		to = plain(end)
	}
	return from, to
}

// enumText turns STORE_STATE_UP into up.
func enumText(name fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name.String(), prefix))
}
