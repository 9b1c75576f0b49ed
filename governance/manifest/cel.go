package manifest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// The bounds of a condition of a guardrail, in the units of cel-go: about one for each
// comparison and each ten bytes that are looked at. The verdict depends on them and not on
// time, so that it is the same on every machine.
const (
	// maxCost bounds one evaluation: by estimate when the guardrail is checked, and counted when a manifest is.
	maxCost = 1_000_000
	// maxMemory bounds the elements of the values of one evaluation.
	maxMemory = 100_000
	// typicalList and typicalText are the sizes of lists and texts that the estimate assumes. A manifest with
	// longer ones is checked too, within maxCost.
	typicalList, typicalText = 100, 256

	maxExpression   = 4096 // characters
	maxExpressions  = 2000 // nodes, with those that macros add
	maxNesting      = 50
	maxRegexProgram = 500
	interruptEvery  = 100 // iterations
)

// RuleError is an error in a condition of a guardrail.
type RuleError struct {
	Index   int    // in spec.rules
	Field   string // when or require, or "" for the rule as a whole
	Message string // the fault and the fix
}

// Path returns the field of the guardrail, as in spec.rules[0].require.
func (e RuleError) Path() string {
	path := fmt.Sprintf("spec.rules[%d]", e.Index)
	if e.Field != "" {
		path += "." + e.Field
	}
	return path
}

// Rules are the compiled conditions of one guardrail.
type Rules struct{ rules []celRule }

type celRule struct {
	spec          configs.GovernanceRule
	when, require cel.Program
	perPermission bool // one of the two names p
}

// CompileRules compiles the conditions of a guardrail, in the Common Expression Language
// (cel.dev). The variable p is one permission, with its defaults filled in, and plugin is the whole
// manifest; a condition that does not name p is evaluated once. A field that does not exist, a
// condition that is not a boolean, one that may cost more than maxCost, and the macros map and
// filter, which build lists, are errors.
func CompileRules(specs []configs.GovernanceRule) (*Rules, []RuleError) {
	out := &Rules{}
	if len(specs) == 0 {
		return out, nil
	}
	env, err := newEnv()
	if err != nil {
		return nil, []RuleError{{Message: err.Error()}}
	}
	var errs []RuleError
	for i, spec := range specs {
		r := celRule{spec: spec}
		for _, part := range []struct {
			field, text string
			to          *cel.Program
		}{{"when", spec.When, &r.when}, {"require", spec.Require, &r.require}} {
			if part.text == "" && part.field == "when" {
				continue
			}
			program, names, err := compile(env, part.text)
			if err != nil {
				errs = append(errs, RuleError{i, part.field, err.Error()})
				continue
			}
			*part.to = program
			r.perPermission = r.perPermission || names["p"]
		}
		out.rules = append(out.rules, r)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return out, nil
}

func newEnv() (*cel.Env, error) {
	env, err := cel.NewCustomEnv(
		cel.StdLib(),
		cel.ClearMacros(),
		cel.Macros(cel.HasMacro, cel.AllMacro, cel.ExistsMacro, cel.ExistsOneMacro),
		cel.Types(
			native[celPermission](), native[celPlugin](), native[celTo](), native[celTLS](), native[celStatements](), native[celData](),
			native[celLimits](), native[celLimit](), native[celArtifact](), native[celCredential](), native[celDocs](), native[celSupport](),
		),
		cel.Variable("p", cel.ObjectType(typeName[celPermission]())),
		cel.Variable("plugin", cel.ObjectType(typeName[celPlugin]())),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxNesting),
		cel.ExpressionNodeLimit(maxExpressions),
		cel.RegexProgramSizeLimit(maxRegexProgram),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare CEL: %w", err)
	}
	return env, nil
}

// native makes the fields of a struct those of its JSON.
func native[T any]() *cel.NativeTypeDesc { return cel.NativeTypeFor[T](types.ParseStructTag("json")) }

func typeName[T any]() string {
	var zero T
	return strings.TrimPrefix(fmt.Sprintf("%T", zero), "*")
}

// compile compiles one condition, and returns the variables that it names.
func compile(env *cel.Env, text string) (cel.Program, map[string]bool, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil, errors.New("is empty; write a condition, as in p.to.tls.min == '1.3'")
	}
	ast, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, nil, fmt.Errorf("does not compile: %s", firstIssue(issues))
	}
	if ast.OutputType() != cel.BoolType {
		return nil, nil, fmt.Errorf("is of type %s; write a condition, which is true or false", ast.OutputType())
	}
	estimate, err := env.EstimateCost(ast, sizes{})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("has no estimate of its cost: %w", err)
	case estimate.Max > maxCost:
		return nil, nil, fmt.Errorf("may cost %d, more than the %d that one evaluation has; nest fewer lists within each other", estimate.Max, maxCost)
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost), cel.MemoryLimit(maxMemory), cel.InterruptCheckFrequency(interruptEvery))
	if err != nil {
		return nil, nil, fmt.Errorf("does not compile: %w", err)
	}
	names := map[string]bool{}
	for _, ref := range ast.NativeRep().ReferenceMap() {
		names[ref.Name] = true
	}
	return program, names, nil
}

// firstIssue returns the first error of the compiler on one line.
func firstIssue(issues *cel.Issues) string {
	for _, e := range issues.Errors() {
		return fmt.Sprintf("%d:%d: %s", e.Location.Line(), e.Location.Column()+1, printable.Clip(strings.ReplaceAll(e.Message, "\n", " "), maxText))
	}
	return "unknown error"
}

// sizes are the sizes of a manifest's parts for the estimate of costs.
type sizes struct{}

// EstimateSize returns the size of a list or text of a variable (cost.Estimator).
func (sizes) EstimateSize(element cost.AstNode) *cost.SizeEstimate {
	if len(element.Path()) == 0 {
		return nil
	}
	most := uint64(typicalList)
	if element.Type().Kind() == types.StringKind {
		most = typicalText
	}
	return &cost.SizeEstimate{Max: most}
}

// EstimateCallCost leaves the costs of functions to the library (cost.Estimator).
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// violation is one condition that does not hold.
type violation struct {
	rule       configs.GovernanceRule
	permission int    // in spec.permissions; -1 for the manifest as a whole
	failure    string // why it could not be evaluated; "" if it was
}

// evaluate returns the conditions that do not hold. One that cannot be evaluated does not
// hold: an error denies.
func (r *Rules) evaluate(ctx context.Context, plugin *celPlugin) (out []violation) {
	for _, rule := range r.rules {
		if !rule.perPermission {
			if v, bad := rule.ask(ctx, map[string]any{"plugin": plugin}); bad {
				v.permission = -1
				out = append(out, v)
			}
			continue
		}
		for i := range plugin.Permissions {
			if v, bad := rule.ask(ctx, map[string]any{"plugin": plugin, "p": plugin.Permissions[i]}); bad {
				v.permission = i
				out = append(out, v)
			}
		}
	}
	return out
}

func (r *celRule) ask(ctx context.Context, vars map[string]any) (violation, bool) {
	v := violation{rule: r.spec}
	if r.when != nil {
		applies, err := isTrue(ctx, r.when, vars)
		if err != nil {
			v.failure = "when: " + err.Error()
			return v, true
		}
		if !applies {
			return v, false
		}
	}
	holds, err := isTrue(ctx, r.require, vars)
	if err != nil {
		v.failure = "require: " + err.Error()
	}
	return v, err != nil || !holds
}

func isTrue(ctx context.Context, program cel.Program, vars map[string]any) (bool, error) {
	out, _, err := program.ContextEval(ctx, vars)
	if err != nil {
		return false, errors.New(printable.Clip(strings.ReplaceAll(err.Error(), "\n", " "), maxText))
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("is of type %s, not a condition", out.Type().TypeName())
	}
	return bool(b), nil
}
