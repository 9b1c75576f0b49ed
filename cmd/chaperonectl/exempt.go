package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/goccy/go-yaml"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// exemptFlags are those of `exempt`.
type exemptFlags struct {
	plugin, permission, rule     string
	allow                        string
	owner, ticket, justification string
	controls                     []string
	expires                      authz.Duration
	maxUses                      int64
	key                          string
}

func (c *cli) exemptCommand() *cobra.Command {
	var f exemptFlags
	cmd := &cobra.Command{
		Use: "exempt NAME --plugin PLUGIN --rule RULE --key KEY", Short: "Make and sign an exemption from one ceiling or condition", Args: command.Exactly(1, "the exemption's name"),
		Long: "Make exemptions/NAME.yaml and its signed form. An exemption is from one ceiling (ceilings.tlsMin), one condition\n" +
			"(rules.ID) or one finding (severities.block with its id as --permission), has an owner, a ticket, a reason and an end,\n" +
			"and is counted and reported. No exemption passes a never-list. Requests of the plugin are reviewed again.",
		Example: "  chaperonectl plugin exempt ex-2026-014 --plugin crm-sync --permission write-crm --rule ceilings.tlsMin --allow '{tlsMin: \"1.2\"}' \\\n" +
			"    --owner payments --ticket SEC-8812 --justification 'The vendor moves to TLS 1.3' --expires 30d --key ana.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), f.key)
			if err != nil {
				return err
			}
			return c.exempt(cmd.Context(), args[0], &f, k)
		},
	}
	keyFlag(cmd, &f.key)
	flags := cmd.Flags()
	flags.StringVar(&f.plugin, "plugin", "", "the `PLUGIN`")
	flags.StringVar(&f.permission, "permission", "", "the `ID` of one permission, or of a finding (default every permission)")
	flags.StringVar(&f.rule, "rule", "", "the `RULE` that the exemption is from, as in ceilings.tlsMin")
	flags.StringVar(&f.allow, "allow", "", "`CEILINGS` in YAML that are allowed instead, as in '{tlsMin: \"1.2\"}'")
	flags.StringVar(&f.owner, "owner", "", "the `TEAM` that answers for it")
	flags.StringVar(&f.ticket, "ticket", "", "the `TICKET` in which it was discussed")
	flags.StringVar(&f.justification, "justification", "", "a `TEXT`: why it is needed")
	flags.StringArrayVar(&f.controls, "control", nil, "a `TEXT`: a measure that lowers the risk; repeatable")
	flags.Var(duration{&f.expires}, "expires", "the `DURATION` after which it ends, as in 30d")
	flags.Int64Var(&f.maxUses, "max-uses", 0, "the `NUMBER` of accesses that it is for (default any)")
	return c.repoFlag(cmd)
}

func (c *cli) exempt(ctx context.Context, name string, f *exemptFlags, key dsse.Signer) error {
	if f.expires <= 0 {
		return command.Usage("exempt: --expires is missing: every exemption ends, as in --expires 30d")
	}
	if !authz.IsName(name) {
		return command.Usage("exempt: %q is not a name; use lower-case letters, digits and dashes, as in ex-2026-014", name)
	}
	spec := configs.GrantExemption{
		GuardrailRule: f.rule, Scope: configs.ExemptionScope{Plugin: f.plugin, Permission: f.permission},
		Owner: f.owner, Ticket: f.ticket, Justification: f.justification, NotAfter: c.now().Add(time.Duration(f.expires)), MaxUses: f.maxUses,
	}
	if err := yaml.UnmarshalWithOptions([]byte(f.allow), &spec.Allow, yaml.Strict()); err != nil && f.allow != "" {
		return command.Usage("exempt: --allow is not ceilings in YAML, as in '{tlsMin: \"1.2\"}': %w", err)
	}
	for _, text := range f.controls {
		spec.CompensatingControls = append(spec.CompensatingControls, configs.CompensatingControl{Description: text})
	}
	r, err := c.openRepo(".")
	if err != nil {
		return err
	}
	defer r.close()
	doc, err := r.NewExemption(name, spec)
	if err != nil {
		return err
	}
	text, err := renderYAML(&configs.Object[configs.GrantExemption]{Metadata: configs.Metadata{Name: name}, Spec: spec})
	if err != nil {
		return err
	}
	e, err := dsse.Sign(ctx, doc.Kind, doc.Payload, key)
	if err != nil {
		return err
	}
	file := filepath.Join("exemptions", name)
	path := filepath.Join(r.dir, file)
	for _, ending := range []string{".yaml", signedEnding, pendingEnding} {
		if _, err := os.Lstat(path + ending); err == nil {
			return fmt.Errorf("exempt %s: %s is there already; an exemption is not changed: make another one", f.plugin, file+ending)
		}
	}
	if err := c.putSigned(path, path+signedEnding, e, key); err != nil {
		return err
	}
	return r.create(filepath.ToSlash(file)+".yaml", text)
}
