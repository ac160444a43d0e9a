package command

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/ridgekv/ridge/client/pdclient"
	"github.com/ridgekv/ridge/proto/keys"
	pdpb "github.com/ridgekv/ridge/proto/ridge/pd/v1"
)

const ruleFileHelp = `FILE is YAML or JSON; "-" reads standard input:

  id: eu
  prefix: "eu/"           # or start and end; with _b64 behind the name: in base64
  voters: 3               # 1, 3, 5 or 7; left out: as configured
  constraints:            # every store with a replica fulfils all of them
    - {key: zone, in: [eu-a, eu-b, eu-c]}
    - {key: disk, not_in: [hdd]}
  leader_preference:      # so does the leader's store, while a voter there can lead
    - {key: zone, in: [eu-a]}`

func newRule() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rule", Short: "Say where the replicas of a span of keys live", RunE: needSubcommand,
	}
	cmd.AddCommand(newRuleList(), newRuleSet(), newRuleDelete())
	return cmd
}

func newRuleList() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the placement rules", Args: cobra.NoArgs,
	}
	return c.add(cmd, func(cmd *cobra.Command, _ []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.ListRules(ctx)
			if err != nil {
				return err
			}
			return c.rules(cmd, r.GetRules())
		})
	})
}

func newRuleSet() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "set FILE", Short: "Create or replace a placement rule",
		Long: "Create the placement rule of a file, or replace the one of its id. One that the " +
			"stores\ncannot follow is refused, with what would make it possible; `ridge plan rule` " +
			"shows\nfirst what it would move.\n\n" + ruleFileHelp,
		Args: cobra.ExactArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		rule, err := readRule(cmd.InOrStdin(), args[0])
		if err != nil {
			return err
		}
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			r, err := pd.SetRule(ctx, rule)
			if err != nil {
				return err
			}
			return c.rules(cmd, []*pdpb.PlacementRule{r.GetRule()})
		})
	})
}

func newRuleDelete() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "delete ID", Short: "Delete a placement rule", Args: cobra.ExactArgs(1),
	}
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		return c.withPD(cmd, func(ctx context.Context, pd *pdclient.Client) error {
			if _, err := pd.DeleteRule(ctx, args[0]); err != nil {
				return err
			}
			if c.json() {
				return c.object(cmd.OutOrStdout(), map[string]any{"deleted": args[0]})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "rule %s is deleted\n", args[0])
			return err
		})
	})
}

func newPlanRule() *cobra.Command {
	var c connection
	cmd := &cobra.Command{
		Use: "rule FILE", Short: "What a placement rule would move",
		Long: "Show what setting the placement rule of a file would move, and where ranges would be\n" +
			"divided. How many bytes lie on which side of a split is not known before: each is\n" +
			"taken for half. With --apply the rule is set, and then exactly those moves are made.\n\n" +
			ruleFileHelp,
		Args: cobra.ExactArgs(1),
	}
	limit := cmd.Flags().Int("limit", 20, "how many moves the table shows; JSON has all")
	apply := cmd.Flags().Bool("apply", false, "set the rule and carry the plan out, showing progress")
	return c.add(cmd, func(cmd *cobra.Command, args []string) error {
		rule, err := readRule(cmd.InOrStdin(), args[0])
		if err != nil {
			return err
		}
		return c.makePlan(cmd, &pdpb.PlanSubject{
			Subject: &pdpb.PlanSubject_Rule{Rule: rule},
		}, *limit, *apply)
	})
}

// maxRuleFile bounds the file of a rule.
const maxRuleFile = 1 << 20

// ruleFile is a placement rule as people write it. The pointers tell an empty
// key from none.
type ruleFile struct {
	ID               string           `yaml:"id"`
	Prefix           *string          `yaml:"prefix"`
	Start            *string          `yaml:"start"`
	End              *string          `yaml:"end"`
	PrefixB64        *string          `yaml:"prefix_b64"`
	StartB64         *string          `yaml:"start_b64"`
	EndB64           *string          `yaml:"end_b64"`
	Voters           uint32           `yaml:"voters"`
	Constraints      []ruleConstraint `yaml:"constraints"`
	LeaderPreference []ruleConstraint `yaml:"leader_preference"`
	// Revision is in what `rule list` prints, and has no meaning here.
	Revision uint64 `yaml:"revision"`
}

type ruleConstraint struct {
	Key   string   `yaml:"key"`
	In    []string `yaml:"in"`
	NotIn []string `yaml:"not_in"`
}

func readRule(stdin io.Reader, path string) (*pdpb.PlacementRule, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxRuleFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(text) > maxRuleFile {
		return nil, usagef("%s is larger than %d bytes", path, maxRuleFile)
	}
	rule, err := parseRule(text)
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return rule, nil
}

// parseRule reads one rule; JSON is YAML too.
func parseRule(text []byte) (*pdpb.PlacementRule, error) {
	var f ruleFile
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&f); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty")
	} else if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", ""))
	}
	if err := d.Decode(&ruleFile{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("one file holds one rule")
	}
	span, err := f.span()
	if err != nil {
		return nil, err
	}
	rule := &pdpb.PlacementRule{Id: f.ID, Span: span.Proto(), Voters: f.Voters}
	if f.ID == "" {
		return nil, errors.New("a rule needs an id")
	}
	if rule.Constraints, err = labelConstraints(f.Constraints); err != nil {
		return nil, fmt.Errorf("constraints: %w", err)
	}
	if rule.LeaderPreference, err = labelConstraints(f.LeaderPreference); err != nil {
		return nil, fmt.Errorf("leader_preference: %w", err)
	}
	return rule, nil
}

func (f *ruleFile) span() (keys.Span, error) {
	prefix, err := oneOf("prefix", f.Prefix, f.PrefixB64)
	if err != nil {
		return keys.Span{}, err
	}
	start, err := oneOf("start", f.Start, f.StartB64)
	if err != nil {
		return keys.Span{}, err
	}
	end, err := oneOf("end", f.End, f.EndB64)
	if err != nil {
		return keys.Span{}, err
	}
	span := keys.Span{Start: start, End: end}
	switch {
	case prefix == nil && start == nil && end == nil:
		return span, errors.New(`a rule needs a prefix, or a start and an end; prefix "" is every key`)
	case prefix != nil && (start != nil || end != nil):
		return span, errors.New("prefix excludes start and end")
	case prefix != nil:
		return keys.Prefix(prefix), nil
	case !span.Valid():
		return span, fmt.Errorf("start %s is not below end %s", plain(start), plain(end))
	}
	return span, nil
}

// oneOf is a key given as text or in base64; nil when it is not given.
func oneOf(name string, text, b64 *string) ([]byte, error) {
	switch {
	case text != nil && b64 != nil:
		return nil, fmt.Errorf("%s and %s_b64 exclude each other", name, name)
	case text != nil:
		return []byte(*text), nil
	case b64 == nil:
		return nil, nil
	}
	out, err := base64.StdEncoding.DecodeString(*b64)
	if err != nil {
		return nil, fmt.Errorf("%s_b64: %w", name, err)
	}
	return out, nil
}

func labelConstraints(list []ruleConstraint) ([]*pdpb.LabelConstraint, error) {
	var out []*pdpb.LabelConstraint
	for _, c := range list {
		if c.Key == "" || (len(c.In) == 0) == (len(c.NotIn) == 0) {
			return nil, errors.New("each has a key, and values under either in or not_in")
		}
		x := &pdpb.LabelConstraint{Key: c.Key, Op: pdpb.LabelConstraint_OP_IN, Values: c.In}
		if len(c.NotIn) > 0 {
			x.Op, x.Values = pdpb.LabelConstraint_OP_NOT_IN, c.NotIn
		}
		out = append(out, x)
	}
	return out, nil
}

// rules answers with placement rules. What JSON shows, a file may hold.
func (c *connection) rules(cmd *cobra.Command, rules []*pdpb.PlacementRule) error {
	if c.json() {
		objects := []map[string]any{}
		for _, r := range rules {
			objects = append(objects, ruleObject(r))
		}
		return c.object(cmd.OutOrStdout(), map[string]any{"rules": objects})
	}
	var rows [][]string
	for _, r := range rules {
		from, to := spanText(r.GetSpan().GetStart(), r.GetSpan().GetEnd())
		voters := "as configured"
		if r.GetVoters() > 0 {
			voters = fmt.Sprint(r.GetVoters())
		}
		rows = append(rows, []string{
			r.GetId(), from, to, voters, constraintsText(r.GetConstraints()),
			constraintsText(r.GetLeaderPreference()),
		})
	}
	return c.table(cmd.OutOrStdout(),
		[]string{"RULE", "START", "END", "VOTERS", "STORES", "LEADERS RATHER"}, rows)
}

func ruleObject(r *pdpb.PlacementRule) map[string]any {
	out := map[string]any{
		"id": r.GetId(), "voters": r.GetVoters(), "revision": r.GetRevision(),
		"constraints":       constraintObjects(r.GetConstraints()),
		"leader_preference": constraintObjects(r.GetLeaderPreference()),
	}
	putBytes(out, "start", r.GetSpan().GetStart())
	putBytes(out, "end", r.GetSpan().GetEnd())
	return out
}

func constraintObjects(list []*pdpb.LabelConstraint) []map[string]any {
	out := []map[string]any{}
	for _, c := range list {
		name := "in"
		if c.GetOp() == pdpb.LabelConstraint_OP_NOT_IN {
			name = "not_in"
		}
		out = append(out, map[string]any{"key": c.GetKey(), name: c.GetValues()})
	}
	return out
}

func constraintsText(list []*pdpb.LabelConstraint) string {
	if len(list) == 0 {
		return "any"
	}
	var parts []string
	for _, c := range list {
		op := "in"
		if c.GetOp() == pdpb.LabelConstraint_OP_NOT_IN {
			op = "not in"
		}
		parts = append(parts, c.GetKey()+" "+op+" "+strings.Join(c.GetValues(), "|"))
	}
	return strings.Join(parts, ", ")
}
