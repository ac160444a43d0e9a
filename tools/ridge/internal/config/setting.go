package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// kind is what a value must look like.
type kind int

const (
	kindString kind = iota
	kindAddress
	kindList
	kindLabels
	kindSize
	kindDuration
	kindInt
	kindBool
	kindChoice
)

// setting is one thing that can be configured. In the file it is its key, in
// the environment RIDGE_ and the key in capitals with _ for dots, on the
// command line its flag.
type setting struct {
	key  string
	kind kind
	// value is the default, written as a user would write it; empty is the
	// default of the room that uses it.
	value string
	help  string
	// flag is the flag's name if it is not the key with - for dots and _.
	flag string
	// choices are the values of kindChoice.
	choices []string
	// min and max bound kindInt, kindSize (bytes) and kindDuration (ns) when
	// max is set.
	min, max int64
	// off: a kindSize that can be turned off, with the word off; it is then -1.
	off bool
	// check refuses values that are well formed but unsafe, with the reason.
	check func(any) error
}

func (s setting) flagName() string {
	if s.flag != "" {
		return s.flag
	}
	return strings.NewReplacer(".", "-", "_", "-").Replace(s.key)
}

func (s setting) envName() string {
	return "RIDGE_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// parse turns what the file, the environment or a flag holds into a value of
// the kind's Go type.
func (s setting) parse(raw any) (any, error) {
	if raw == nil {
		return nil, errors.New("has no value")
	}
	switch s.kind {
	case kindList:
		return parseList(raw)
	case kindLabels:
		return parseLabels(raw)
	}
	if _, scalar := raw.(map[string]any); scalar {
		return nil, errors.New("takes one value, not a section")
	}
	if _, list := raw.([]any); list {
		return nil, errors.New("takes one value, not a list")
	}
	text := strings.TrimSpace(fmt.Sprint(raw))
	switch s.kind {
	case kindAddress:
		return text, checkAddress(text)
	case kindSize:
		return s.parseSize(text)
	case kindDuration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a duration such as 10s or 5m", text)
		}
		return d, s.checkBounds(int64(d), func(n int64) string { return time.Duration(n).String() })
	case kindInt:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return n, s.checkBounds(n, func(n int64) string { return strconv.FormatInt(n, 10) })
	case kindBool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return b, nil
	case kindChoice:
		for _, c := range s.choices {
			if c == text {
				return text, nil
			}
		}
		return nil, fmt.Errorf("%q is not one of %s", text, strings.Join(s.choices, ", "))
	}
	return text, nil
}

func (s setting) parseSize(text string) (any, error) {
	if s.off && text == "off" {
		return int64(-1), nil
	}
	n, err := parseBytes(text)
	if err != nil {
		return nil, err
	}
	return n, s.checkBounds(n, func(n int64) string { return humanize.IBytes(uint64(n)) })
}

func (s setting) checkBounds(n int64, show func(int64) string) error {
	switch {
	case n < s.min:
		return fmt.Errorf("%s is too small: at least %s", show(n), show(s.min))
	case s.max > 0 && n > s.max:
		return fmt.Errorf("%s is too large: at most %s", show(n), show(s.max))
	}
	return nil
}

// parseBytes reads sizes such as 64MB, 1.5 GiB or 4096. K, M, G and T count in
// 1,024s whether or not an i follows: that is how memory is cut, and a cache of
// 64MB means 64 MiB to everyone who tunes one.
func parseBytes(text string) (int64, error) {
	bad := fmt.Errorf("%q is not a size such as 64MB", text)
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) {
		return 0, bad
	}
	unit := strings.ToLower(strings.TrimSpace(text[len(digits):]))
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
	by, known := shift[unit]
	if !known {
		return 0, bad
	}
	if n *= float64(int64(1) << by); n > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is larger than any machine", text)
	}
	return int64(n), nil
}

func parseList(raw any) (any, error) {
	var out []string
	switch v := raw.(type) {
	case []any:
		for _, e := range v {
			out = append(out, strings.TrimSpace(fmt.Sprint(e)))
		}
	case []string:
		out = v
	case string:
		for part := range strings.SplitSeq(v, ",") {
			out = append(out, strings.TrimSpace(part))
		}
	default:
		return nil, fmt.Errorf("%v is not a list", raw)
	}
	for _, e := range out {
		if e == "" {
			return nil, errors.New("has an empty element")
		}
	}
	return out, nil
}

func parseLabels(raw any) (any, error) {
	out := map[string]string{}
	add := func(k, v string) error {
		if k == "" || v == "" {
			return fmt.Errorf("%q: write key=value", k+"="+v)
		}
		out[k] = v
		return nil
	}
	if m, ok := raw.(map[string]any); ok {
		for k, v := range m {
			if err := add(k, fmt.Sprint(v)); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	list, err := parseList(raw)
	if err != nil {
		return nil, err
	}
	for _, e := range list.([]string) {
		k, v, _ := strings.Cut(e, "=")
		if err := add(k, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func checkAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is not host:port", text)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > math.MaxUint16 {
		return fmt.Errorf("%q: %q is not a port", text, port)
	}
	return nil
}

// Loopback reports whether only this machine can reach the address.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}
