package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

func (c *cli) trustCommand() *cobra.Command {
	return group("trust", "Make and rotate the trust root", "Make and rotate the trust root: whose key signs what.",
		c.trustInitCommand(), c.trustRotateCommand(), c.trustShowCommand())
}

// trustInit are the flags of `trust init`.
type trustInit struct {
	name       string
	signers    []string
	thresholds []string
	onePerson  string
	key        string
}

func (c *cli) trustInitCommand() *cobra.Command {
	var f trustInit
	cmd := &cobra.Command{
		Use: "init [FOLDER]", Short: "Make a repository with a trust root", Args: cobra.MaximumNArgs(1),
		Long: "Make trust.yaml, the anchor of everything that is signed. Each --signer states the roles, the identity and the\n" +
			"public half of one key (see keygen). Two keys of one identity are one person. Roles: author, policy, measurer,\n" +
			"scanner, security, compliance, performance, owner, executive, release, root.\n\n" +
			"With --one-person, one key has every role, and a guardrail and a rubric are made and signed too. The author never\n" +
			"approves, so that this can issue grants of low risk only, which that guardrail allows without an approval.",
		Example: "  chaperonectl plugin trust init --name corp --threshold root=2 \\\n" +
			"    --signer author=dev@corp=PUBLIC --signer root,policy=ana@corp=PUBLIC --signer root,security=bo@corp=PUBLIC \\\n" +
			"    --signer release=ci@corp=PUBLIC\n" +
			"  chaperonectl plugin trust init --one-person me@lab --key me.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return c.trustInit(cmd.Context(), dir, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "corp", "the `NAME` of the trust root")
	flags.StringArrayVar(&f.signers, "signer", nil, "`ROLE,ROLE...=IDENTITY=PUBLIC`: a key and its roles; repeatable")
	flags.StringArrayVar(&f.thresholds, "threshold", nil, "`ROLE=N`: how many people of role root or policy sign together (default 1); repeatable")
	flags.StringVar(&f.onePerson, "one-person", "", "for a lab: give every role to this `IDENTITY`, whose key is --key")
	keyFlag(cmd, &f.key)
	return cmd
}

func (c *cli) trustInit(ctx context.Context, dir string, f trustInit) error {
	if (f.onePerson == "") == (len(f.signers) == 0) || (f.onePerson == "") != (f.key == "") {
		return command.Usage("trust init: state the keys with --signer, or for a lab --one-person IDENTITY with --key")
	}
	thresholds, err := parseThresholds(f.thresholds)
	if err != nil {
		return err
	}
	var only dsse.Signer
	if f.onePerson != "" {
		if only, err = signer(ctx, f.key); err != nil {
			return err
		}
		var roles []string
		for _, role := range governance.StandardRoles() {
			roles = append(roles, role.Name)
		}
		f.signers = []string{strings.Join(roles, ",") + "=" + f.onePerson + "=" + halfOf(only.Public(), "").Ed25519}
	}
	holders, err := parseHolders(f.signers)
	if err != nil {
		return err
	}
	spec, unheld, err := governance.NewTrust(f.name, holders, thresholds)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a repository that everybody reads
		return fmt.Errorf("make repository: %w", err)
	}
	if err := writeTrust(dir, f.name, spec); err != nil {
		return err
	}
	c.say("%s states whose key signs what; protect it, since every signature is judged by it", filepath.Join(dir, governance.FileTrust))
	if len(unheld) > 0 {
		c.warn("no key has the roles %s; documents of their kinds cannot be signed", strings.Join(unheld, ", "))
	}
	if only != nil {
		return c.lab(ctx, dir, only, f.onePerson)
	}
	c.say("next: sign a guardrail and a rubric: chaperonectl plugin sign guardrails/company.yaml --key KEY")
	return nil
}

// writeTrust writes trust.yaml, which must not be there.
func writeTrust(dir, name string, spec configs.TrustRoot) error {
	data, err := renderYAML(&configs.Object[configs.TrustRoot]{Metadata: configs.Metadata{Name: name}, Spec: spec})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, governance.FileTrust)
	switch err := atomicfile.Create(path, data, maxPublic); {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("make trust root: %s exists already; change it with trust rotate", path)
	case err != nil:
		return fmt.Errorf("make trust root: %w", err)
	}
	return nil
}

// renderYAML writes a document as people edit it, and reads it back.
func renderYAML[S any](object *configs.Object[S]) ([]byte, error) {
	data, err := configs.RenderObject(object)
	if err != nil {
		return nil, err
	}
	if data, err = yaml.JSONToYAML(data); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	if _, err := configs.ParseObject[S]("document.yaml", data); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return data, nil
}

func parseHolders(signers []string) ([]governance.Holder, error) {
	var out []governance.Holder
	for _, s := range signers {
		roles, rest, found := strings.Cut(s, "=")
		identity, public, also := strings.Cut(rest, "=")
		if !found || !also || roles == "" || identity == "" || public == "" {
			return nil, command.Usage("--signer %q: write ROLE,ROLE...=IDENTITY=PUBLIC, as in author=ana@corp.example=BASE64", s)
		}
		out = append(out, governance.Holder{Roles: strings.Split(roles, ","), Key: dsse.KeySpec{Identity: identity, Ed25519: public}})
	}
	return out, nil
}

func parseThresholds(all []string) (map[string]int, error) {
	out := map[string]int{}
	for _, s := range all {
		role, number, _ := strings.Cut(s, "=")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || role == "" {
			return nil, command.Usage("--threshold %q: write ROLE=N, as in root=2", s)
		}
		out[role] = n
	}
	return out, nil
}
