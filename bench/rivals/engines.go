package main

import (
	"context"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/ext"
	"github.com/cedar-policy/cedar-go"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
)

// opa is a prepared query over one rule for each grant, in the statements that
// OPA's index understands, so that it evaluates only those that can match.
type opa struct{ query rego.PreparedEvalQuery }

func newOPA(scene *Scene) (engine, error) {
	var text strings.Builder
	text.WriteString("package bench\n\ndefault allow := false\n")
	for _, r := range scene.Rules {
		fmt.Fprintf(&text, "\nallow if {\n\tinput.principal == %q\n\tglob.match(%q, [\".\"], input.host)\n\tinput.method in {%s}\n\tstartswith(input.path, %q)\n}\n",
			scene.Principal, "*."+r.Below, quoted(r.Methods, "%q"), r.Prefix)
	}
	query, err := rego.New(rego.Query("data.bench.allow"), rego.Module("bench.rego", text.String())).PrepareForEval(context.Background())
	return opa{query}, err
}

func (e opa) allows(ctx context.Context, r Request) (bool, error) {
	input := ast.NewObject(
		ast.Item(ast.InternedTerm("principal"), ast.StringTerm(r.Principal)), ast.Item(ast.InternedTerm("host"), ast.StringTerm(r.Host)),
		ast.Item(ast.InternedTerm("method"), ast.StringTerm(r.Method)), ast.Item(ast.InternedTerm("path"), ast.StringTerm(r.Path)))
	results, err := e.query.Eval(ctx, rego.EvalParsedInput(input))
	return results.Allowed(), err
}

// cedarPolicies is a policy for each grant and method. The hosts below a name
// are in an entity of that name, as Cedar models groups, so that a policy which
// does not match is left at its scope. Of the ways to write the rules that were
// tried this is the fastest: a set of actions in the scope takes 2.5 times as long.
type cedarPolicies struct{ policies *cedar.PolicySet }

func newCedar(scene *Scene) (engine, error) {
	var text strings.Builder
	for _, r := range scene.Rules {
		for _, method := range r.Methods {
			fmt.Fprintf(&text, "permit (principal == Plugin::%q, action == Action::%q, resource in Site::%q)\nwhen { context.path like %q };\n",
				scene.Principal, method, r.Below, r.Prefix+"*")
		}
	}
	policies, err := cedar.NewPolicySetFromBytes("bench.cedar", []byte(text.String()))
	return cedarPolicies{policies}, err
}

func (e cedarPolicies) allows(_ context.Context, r Request) (bool, error) {
	host := cedar.NewEntityUID("Host", cedar.String(r.Host))
	_, site, _ := strings.Cut(r.Host, ".")
	entities := cedar.EntityMap{host: {UID: host, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Site", cedar.String(site)))}}
	decision, diagnostic := cedar.Authorize(e.policies, entities, cedar.Request{
		Principal: cedar.NewEntityUID("Plugin", cedar.String(r.Principal)), Action: cedar.NewEntityUID("Action", cedar.String(r.Method)),
		Resource: host, Context: cedar.NewRecord(cedar.RecordMap{"path": cedar.String(r.Path)}),
	})
	if len(diagnostic.Errors) > 0 {
		return false, fmt.Errorf("%v", diagnostic.Errors[0])
	}
	return bool(decision), nil
}

// celPrograms is one program for each grant, asked one after another, since CEL
// evaluates expressions and has no index over them. The most selective
// condition is compared first.
type celPrograms []cel.Program

func newCEL(scene *Scene) (engine, error) {
	variables := []cel.EnvOption{ext.Strings()}
	for _, name := range []string{"principal", "host", "method", "path"} {
		variables = append(variables, cel.Variable(name, cel.StringType))
	}
	env, err := cel.NewEnv(variables...)
	if err != nil {
		return nil, err
	}
	var programs celPrograms
	for _, r := range scene.Rules {
		// The last term: one label before the name, and not several.
		checked, issues := env.Compile(fmt.Sprintf("host.endsWith(%q) && principal == %q && method in [%s] && path.startsWith(%q) && !host.substring(0, size(host) - %d).contains('.')",
			"."+r.Below, scene.Principal, quoted(r.Methods, "%q"), r.Prefix, len(r.Below)+1))
		if issues.Err() != nil {
			return nil, issues.Err()
		}
		program, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize))
		if err != nil {
			return nil, err
		}
		programs = append(programs, program)
	}
	return programs, nil
}

func (e celPrograms) allows(_ context.Context, r Request) (bool, error) {
	values, err := cel.NewActivation(map[string]any{"principal": r.Principal, "host": r.Host, "method": r.Method, "path": r.Path})
	if err != nil {
		return false, err
	}
	for _, program := range e {
		out, _, err := program.Eval(values)
		if err != nil {
			return false, err
		}
		if out.Value() == true {
			return true, nil
		}
	}
	return false, nil
}

// quoted returns the texts, each in a form, with commas between.
func quoted(texts []string, form string) string {
	var all []string
	for _, text := range texts {
		all = append(all, fmt.Sprintf(form, text))
	}
	return strings.Join(all, ", ")
}
