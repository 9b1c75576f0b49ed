package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const (
	signedEnding = ".dsse.json"
	// pendingEnding is that of documents which too few people have signed.
	pendingEnding = ".pending.json"
)

func (c *cli) signCommand() *cobra.Command {
	var key, out string
	var add bool
	cmd := &cobra.Command{
		Use: "sign FILE --key KEY", Short: "Sign a guardrail, an exemption, a rubric, a checklist or a Sidecar",
		Args: command.Exactly(1, "one file"),
		Long: "Sign a document: a PluginGuardrail, GrantExemption, RiskRubric, ComplianceChecklist or Sidecar in YAML or JSON, which is\n" +
			"checked first and becomes NAME.dsse.json beside it. Where several people of a role have to sign, it is NAME.pending.json\n" +
			"until enough of them have: each adds a signature with --add.",
		Example: "  chaperonectl plugin sign guardrails/company.yaml --key ana.key\n" +
			"  chaperonectl plugin sign --add guardrails/company.pending.json --key vault:transit/bo",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), key)
			if err != nil {
				return err
			}
			if add {
				return c.addSignature(cmd.Context(), args[0], k)
			}
			return c.sign(cmd.Context(), args[0], out, k)
		},
	}
	keyFlag(cmd, &key)
	cmd.Flags().BoolVar(&add, "add", false, "add a signature to a document that others have signed")
	cmd.Flags().StringVarP(&out, "out", "o", "", "the `FILE` to write (default beside the document)")
	return c.repoFlag(cmd)
}

// sign makes the signed form of a document.
func (c *cli) sign(ctx context.Context, file, out string, key dsse.Signer) error {
	data, err := readDocument(file)
	if err != nil {
		return err
	}
	doc, err := governance.ParseDocument(file, data)
	if err != nil {
		return err
	}
	if err := checkRules(file, doc); err != nil {
		return err
	}
	e, err := dsse.Sign(ctx, doc.Kind, doc.Payload, key)
	if err != nil {
		return err
	}
	if out == "" {
		out = strings.TrimSuffix(file, filepath.Ext(file)) + signedEnding
	}
	return c.putSigned(file, out, e, key)
}

// checkRules compiles the conditions of a guardrail before it is signed: with a wrong one,
// no manifest would pass.
func checkRules(file string, doc governance.Document) error {
	if doc.Kind != dsse.KindGuardrail {
		return nil
	}
	object, err := configs.ParseObject[configs.GuardrailSpec](file+".json", doc.Payload)
	if err != nil {
		return err
	}
	var errs []error
	_, faults := manifest.CompileRules(object.Spec.Rules)
	for _, f := range faults {
		errs = append(errs, fmt.Errorf("%s: %s %s", file, f.Path(), f.Message))
	}
	return errors.Join(errs...)
}

// addSignature adds a signature to a signed document.
func (c *cli) addSignature(ctx context.Context, file string, key dsse.Signer) error {
	data, err := readDocument(file)
	if err != nil {
		return err
	}
	e, err := dsse.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	// The payload is read before, as strictly as when it was written.
	if err := governance.CheckPayload(file, e); err != nil {
		return err
	}
	if err := e.Add(ctx, key); err != nil {
		return err
	}
	base, pending := strings.CutSuffix(file, pendingEnding)
	if !pending {
		base = strings.TrimSuffix(file, signedEnding)
	}
	return c.putSigned(file, base+signedEnding, e, key)
}

// putSigned writes a signed document: as pending until enough people have signed it.
func (c *cli) putSigned(from, out string, e *dsse.Envelope, key dsse.Signer) error {
	r, err := c.openFolder(filepath.Dir(from))
	if err != nil {
		return err
	}
	defer r.close()
	root, err := governance.ReadTrust(r.files())
	if err != nil {
		return err
	}
	identity := governance.Owner(root, e, key.Public())
	if identity == "" {
		return fmt.Errorf("sign %s: the trust root lists no key %s, or it is revoked; rotate the root to add one", from, key.Public().KeyID())
	}
	if err := governance.Follows(root, e); err != nil {
		return fmt.Errorf("sign %s: %w", from, err)
	}
	rel, err := r.rel(out)
	if err != nil {
		return err
	}
	pending := path.Join(path.Dir(rel), strings.TrimSuffix(path.Base(rel), signedEnding)+pendingEnding)
	if err := governance.Complete(root, e); err != nil {
		if !governance.MaySign(root, e, key.Public()) {
			return fmt.Errorf("sign %s: %w", from, err)
		}
		if err := r.write(pending, e.Marshal()); err != nil {
			return err
		}
		c.say("%s: %s, signed by %s, %s, and not in force yet: %v", pending, governance.Describe(e), identity, e.Digest(), err)
		return nil
	}
	if was, err := governance.ReadEnvelope(r.files(), rel); err == nil {
		if err := governance.NewerThan(root, rel, was, e); err != nil {
			return fmt.Errorf("sign %s: %w", from, err)
		}
	}
	if err := r.write(rel, e.Marshal()); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.dir, filepath.FromSlash(pending))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", pending, err)
	}
	c.say("%s: %s, signed by %s, %s", rel, governance.Describe(e), identity, e.Digest())
	return c.warnUnheld(root, rel, e)
}

// warnUnheld warns of roles that a guardrail demands and too few people hold.
func (c *cli) warnUnheld(root *dsse.Root, file string, e *dsse.Envelope) error {
	if e.PayloadType != dsse.KindGuardrail.PayloadType() {
		return nil
	}
	object, err := configs.ParseObject[configs.GuardrailSpec](file, e.Unverified)
	if err != nil {
		return err
	}
	for _, text := range governance.Unheld(root, &object.Spec.Governance) {
		c.warn("%s: %s", file, text)
	}
	return nil
}

// readDocument reads a file that an operator names.
func readDocument(file string) ([]byte, error) {
	f, info, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > dsse.MaxEnvelope {
		return nil, fmt.Errorf("read %s: it has %d bytes; at most %d are read", file, info.Size(), dsse.MaxEnvelope)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil && info.Size() > 0 {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return data, nil
}
