// Package config turns a YAML file, RIDGE_* variables and flags into checked
// values. A flag wins over the environment, which wins over the file. Unknown
// keys and bad values are refused, all at once.
package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Schema is the set of settings that one command understands.
type Schema struct {
	name     string
	settings []setting
}

// Values are the checked values of one command line.
type Values struct{ m map[string]any }

// Error holds every fault of a configuration.
type Error struct{ Faults []error }

func (e Error) Error() string {
	var b strings.Builder
	b.WriteString("the configuration has faults:")
	for _, f := range e.Faults {
		b.WriteString("\n  " + strings.ReplaceAll(f.Error(), "\n", "\n  "))
	}
	return b.String()
}

func (e Error) Unwrap() []error { return e.Faults }

// ignoredVariables are RIDGE_* names that belong to other commands and to the
// tests, and are no fault in any environment.
var ignoredVariables = []string{
	"RIDGE_CONFIG", "RIDGE_PD", "RIDGE_LONG", "RIDGE_SEED", "RIDGE_DURATION", "RIDGE_BINARY",
	"RIDGE_KEEP",
}

// AddFlags adds a flag for every setting, and --config.
func (s Schema) AddFlags(flags *pflag.FlagSet) {
	flags.String("config", "", "YAML file with the settings below (env RIDGE_CONFIG)")
	for _, set := range s.settings {
		help := set.help
		if len(set.choices) > 0 {
			help += " (" + strings.Join(set.choices, "|") + ")"
		}
		if set.kind == kindBool {
			flags.Bool(set.flagName(), set.value == "true", help)
			continue
		}
		flags.String(set.flagName(), set.value, help)
	}
}

// Load reads the file that --config names, the environment and the flags that
// were given. environ is as os.Environ returns it.
func (s Schema) Load(flags *pflag.FlagSet, environ []string) (Values, error) {
	var faults []error
	path, _ := flags.GetString("config")
	if path == "" {
		path = lookup(environ, "RIDGE_CONFIG")
	}
	given := map[string]any{} // key → raw value
	from := map[string]string{}
	take := func(m map[string]any, source func(key string) string) {
		for k, v := range m {
			given[k], from[k] = v, source(k)
		}
	}
	fromFile, err := s.readFile(path)
	faults = append(faults, err)
	take(fromFile, func(k string) string { return path + ": " + k })
	fromEnv, errs := s.readEnv(environ)
	faults = append(faults, errs...)
	take(fromEnv, func(k string) string { return s.find(k).envName() })
	take(s.readFlags(flags), func(k string) string { return "--" + s.find(k).flagName() })

	v := Values{m: map[string]any{}}
	for _, set := range s.settings {
		raw, where := any(set.value), "default of "+set.key
		if g, ok := given[set.key]; ok {
			raw, where = g, from[set.key]
		} else if set.value == "" {
			continue
		}
		parsed, err := set.parse(raw)
		if err == nil && set.check != nil {
			err = set.check(parsed)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", where, err))
			continue
		}
		v.m[set.key] = parsed
	}
	faults = slices.DeleteFunc(faults, func(e error) bool { return e == nil })
	if len(faults) > 0 {
		return v, Error{faults}
	}
	return v, nil
}

func (s Schema) find(key string) setting {
	i := slices.IndexFunc(s.settings, func(set setting) bool { return set.key == key })
	if i < 0 {
		return setting{}
	}
	return s.settings[i]
}

// readFile returns the file's settings by key. A section that is a setting
// itself (labels) stays whole.
func (s Schema) readFile(path string) (map[string]any, error) {
	if path == "" {
		return nil, nil
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		if pathErr, ok := errors.AsType[*os.PathError](err); ok {
			return nil, fmt.Errorf("--config: %w", pathErr)
		}
		return nil, fmt.Errorf("%s: not valid YAML: %w", path, err)
	}
	out := map[string]any{}
	var faults []error
	s.flatten("", k.Raw(), out, func(key string) {
		faults = append(faults, fmt.Errorf("%s: unknown key %s%s", path, key, s.suggest(key)))
	})
	return out, errors.Join(faults...)
}

func (s Schema) flatten(prefix string, m, out map[string]any, unknown func(string)) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		key := prefix + k
		section, isSection := m[k].(map[string]any)
		switch {
		case s.find(key).key != "":
			out[key] = m[k]
		case isSection && s.isSection(key):
			s.flatten(key+".", section, out, unknown)
		case m[k] == nil && s.isSection(key): // "storage:" with nothing below
		default:
			unknown(key)
		}
	}
}

func (s Schema) isSection(key string) bool {
	return slices.ContainsFunc(s.settings, func(set setting) bool {
		return strings.HasPrefix(set.key, key+".")
	})
}

func (s Schema) readEnv(environ []string) (map[string]any, []error) {
	byName := map[string]string{}
	for _, set := range s.settings {
		byName[set.envName()] = set.key
	}
	var faults []error
	k := koanf.New("/") // no key holds a slash: nothing is cut
	provider := env.Provider("/", env.Opt{
		Prefix:      "RIDGE_",
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			key, known := byName[name]
			if !known && !slices.Contains(ignoredVariables, name) && !knownElsewhere(name) {
				faults = append(faults, fmt.Errorf("environment: unknown variable %s", name))
			}
			return key, value
		},
	})
	if err := k.Load(provider, nil); err != nil {
		faults = append(faults, fmt.Errorf("environment: %w", err))
	}
	return k.All(), faults
}

// knownElsewhere reports whether another command has a setting of that name:
// one environment may serve several.
func knownElsewhere(name string) bool {
	for _, s := range []Schema{PD(), Store(), Dev(), Client()} {
		if slices.ContainsFunc(s.settings, func(t setting) bool { return t.envName() == name }) {
			return true
		}
	}
	return false
}

func (s Schema) readFlags(flags *pflag.FlagSet) map[string]any {
	out := map[string]any{}
	for _, set := range s.settings {
		if f := flags.Lookup(set.flagName()); f != nil && f.Changed {
			out[set.key] = f.Value.String()
		}
	}
	return out
}

// suggest names the setting that key was probably meant to be.
func (s Schema) suggest(key string) string {
	best, bestDistance := "", 4
	for _, set := range s.settings {
		if d := distance(key, set.key); d < bestDistance {
			best, bestDistance = set.key, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func lookup(environ []string, name string) string {
	value := ""
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

// Given reports whether the setting has a value.
func (v Values) Given(key string) bool { _, ok := v.m[key]; return ok }

// String returns a text, an address or a choice; "" when it is not given.
func (v Values) String(key string) string { return value[string](v, key) }

// Strings returns a list.
func (v Values) Strings(key string) []string { return value[[]string](v, key) }

// Labels returns a map of labels.
func (v Values) Labels(key string) map[string]string { return value[map[string]string](v, key) }

// Int returns a number or a size in bytes; 0 when it is not given.
func (v Values) Int(key string) int64 { return value[int64](v, key) }

// Duration returns a duration; 0 when it is not given.
func (v Values) Duration(key string) time.Duration { return value[time.Duration](v, key) }

// Bool returns a switch; false when it is not given.
func (v Values) Bool(key string) bool { return value[bool](v, key) }

func value[T any](v Values, key string) T {
	t, _ := v.m[key].(T)
	return t
}
