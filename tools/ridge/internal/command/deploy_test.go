package command

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/ridgekv/ridge/tools/ridge/internal/config"
)

const repository = "../../../.."

// understood checks that a command line names a command, its flags and as many
// arguments as it takes.
func understood(line string) error {
	line = strings.NewReplacer(`"`, "", "`", "", "...", "").Replace(line)
	cmd, args, err := newRoot(new(bool)).Find(strings.Fields(line))
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() && cmd.Name() != "store" && cmd.Name() != "pd" {
		return fmt.Errorf("%q needs a subcommand", cmd.CommandPath())
	}
	if err := cmd.ParseFlags(args); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// TestUnitsAndReadme: the command lines of the units and of the README exist.
func TestUnitsAndReadme(t *testing.T) {
	lines := map[string]*regexp.Regexp{
		"deploy/systemd/ridge-pd.service":    regexp.MustCompile(`(?m)^Exec\w+=\S*ridge (.*)$`),
		"deploy/systemd/ridge-store.service": regexp.MustCompile(`(?m)^Exec\w+=\S*ridge (.*)$`),
		"deploy/README.md":                   regexp.MustCompile("`ridge ([^`]*)`"),
		"README.md":                          regexp.MustCompile("(?:bin/|[$] )ridge ([^#&|`\n]*)"),
	}
	for path, command := range lines {
		b, err := os.ReadFile(filepath.Join(repository, path))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ")
		found := command.FindAllStringSubmatch(text, -1)
		if len(found) == 0 {
			t.Errorf("%s: no command line", path)
		}
		for _, m := range found {
			if err := understood(m[1]); err != nil {
				t.Errorf("%s: ridge %s: %v", path, m[1], err)
			}
		}
	}
}

// TestCompose: what compose.yaml puts into the environment of its services are
// settings, with values that are accepted.
func TestCompose(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(repository, "deploy/compose/compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
		}
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for name, s := range file.Services {
		if s.Image != "ridge" {
			continue
		}
		schema := config.Store()
		if s.Command[0] == "pd" {
			schema = config.PD()
		}
		cmd, _, err := newRoot(new(bool)).Find(s.Command)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var env []string
		for k, v := range s.Environment {
			env = append(env, k+"="+v)
		}
		v, err := schema.Load(cmd.Flags(), env)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if v.String("listen") == "" || !v.Bool("insecure") {
			t.Errorf("%s: read nothing", name)
		}
		seen[cmd.Name()]++
	}
	if seen["pd"] != 3 || seen["store"] != 3 {
		t.Errorf("services: %v", seen)
	}
}
