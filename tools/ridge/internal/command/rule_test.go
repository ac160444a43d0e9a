package command

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// What `rule list -o json` prints may be fed to `rule set`: nothing is lost.
func TestRuleFilesRoundTrip(t *testing.T) {
	for _, text := range []string{
		`{"id": "all", "prefix": "", "voters": 5}`,
		"id: eu\nprefix: eu/\nconstraints:\n  - {key: zone, in: [a, b]}\n  - {key: disk, not_in: [hdd]}\n" +
			"leader_preference:\n  - {key: zone, in: [a]}\n",
		`{"id": "b", "start_b64": "/wA=", "end_b64": "/w8="}`,
		"id: half\nend: m\nvoters: 1\n",
	} {
		rule, err := parseRule([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		again, err := json.Marshal(ruleObject(rule))
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseRule(again)
		if err != nil || !proto.Equal(rule, back) {
			t.Errorf("%s became %s: %v, %v", rule, again, back, err)
		}
	}
}

func TestRuleFileFaults(t *testing.T) {
	for text, words := range map[string]string{
		"":                                   "empty",
		"prefix: a":                          "needs an id",
		"id: a":                              "needs a prefix",
		"id: a\nprefix: x\nend: y":           "excludes",
		"id: a\nprefix: x\nprefix_b64: eA==": "exclude each other",
		"id: a\nstart: m\nend: b":            "not below",
		"id: a\nprefix: x\nvoter: 3":         "field voter not found",
		"id: a\nprefix: x\nvoters: -3":       "line 3",
		"id: a\nprefix_b64: '?'":             "prefix_b64",
		"id: a\nprefix: x\n---\nid: b":       "one rule",
		"id: a\nprefix: x\nconstraints: [{key: zone}]":                          "constraints: each has",
		"id: a\nprefix: x\nconstraints: [{in: [a]}]":                            "constraints: each has",
		"id: a\nprefix: x\nleader_preference: [{key: z, in: [a], not_in: [b]}]": "leader_preference: each has",
		"- id: a": "cannot unmarshal",
	} {
		if _, err := parseRule([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", text, err, words)
		}
	}
	path := filepath.Join(t.TempDir(), "rule.yaml")
	if err := os.WriteFile(path, []byte("id: a\nprefx: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"rule set", "plan rule"} {
		code, _, errOut := ridge(t, append(strings.Fields(verb), path)...)
		if code != exitUsage || !strings.Contains(errOut, "prefx") || strings.Contains(errOut, "\n\n") {
			t.Errorf("%s: code %d: %s", verb, code, errOut)
		}
	}
	if _, err := readRule(bytes.NewReader(make([]byte, maxRuleFile+1)), "-"); err == nil {
		t.Error("read a file that is too large")
	}
}
