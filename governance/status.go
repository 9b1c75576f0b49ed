package governance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Status is the state of a request, as commands print it.
type Status struct {
	Plugin  string `json:"plugin"`
	Version string `json:"version"`
	// Stage is the first stage that is not done, or issued.
	Stage    string `json:"stage"`
	Score    int    `json:"score"`
	Band     string `json:"band"`
	WaitsFor string `json:"waitsFor,omitempty"`
	// Due is when the stage has to end, and Overdue whether it should have.
	Due     time.Time `json:"due,omitzero"`
	DueText string    `json:"-"`
	Overdue bool      `json:"overdue,omitempty"`
	// Grant is the digest of the grant under review, and NotAfter the end of the one in force.
	Grant    string    `json:"grant,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"`
	Moved    []Moved   `json:"moved,omitempty"`
	// Differences are those to the version in force, in words.
	Differences []string `json:"differences,omitempty"`
	Stages      []Stage  `json:"stages"`
}

// StatusOf returns the state of a request.
func StatusOf(e *Evaluation) Status {
	s := Status{
		Plugin: e.Request.Plugin, Version: e.Request.Version, Stage: "issued", Score: e.Score, Band: e.Band,
		Grant: e.Draft, Moved: e.Moved, Differences: e.Differences, Stages: e.Stages, DueText: "-",
	}
	if s.NotAfter = e.Ends; !e.Ends.IsZero() && !e.now.Before(e.Ends) {
		s.WaitsFor, s.DueText = "role release", "ended "+e.Ends.UTC().Format("2006-01-02 15:04Z")
	}
	at := e.Current()
	if at == nil {
		return s
	}
	s.Stage, s.Due, s.Overdue = at.Name, at.Due, at.Overdue
	if !at.Due.IsZero() {
		s.DueText = at.Due.UTC().Format("2006-01-02 15:04Z")
		if at.Overdue {
			s.DueText += " (overdue)"
		}
	}
	s.WaitsFor = waitsFor(at)
	return s
}

// waitsFor states whose turn it is.
func waitsFor(s *Stage) string {
	if len(s.Problems) == 0 {
		return "role release"
	}
	var roles []string
	for _, p := range s.Problems {
		if p.Role != "" && !slices.Contains(roles, p.Role) {
			roles = append(roles, p.Role)
		}
	}
	if len(roles) == 0 {
		return s.Problems[0].Message
	}
	return "role " + strings.Join(roles, ", ")
}

// EvaluateAll evaluates every request of the repository, ordered by risk and age: the
// highest band first, and in it the longest wait. A folder that cannot be read is an error
// beside the evaluations of the others, so that the author of one does not hide them.
func (r *Repository) EvaluateAll(ctx context.Context, now time.Time) ([]*Evaluation, error) {
	plugins, err := r.Plugins()
	if err != nil {
		return nil, err
	}
	all, faults := make([][]*Evaluation, len(plugins)), make([]error, len(plugins))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, plugin := range plugins {
		group.Go(func() error {
			all[i], faults[i] = r.evaluatePlugin(ctx, plugin, now)
			return nil
		})
	}
	_ = group.Wait() // the faults are those of the plugins
	out := slices.Concat(all...)
	slices.SortStableFunc(out, func(a, b *Evaluation) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), a.Request.reviewedUntil().Compare(b.Request.reviewedUntil()))
	})
	return out, errors.Join(faults...)
}

func (r *Repository) evaluatePlugin(ctx context.Context, plugin string, now time.Time) ([]*Evaluation, error) {
	versions, err := r.Versions(plugin)
	if err != nil {
		return nil, err
	}
	var out []*Evaluation
	var faults []error
	for _, version := range versions {
		e, err := r.evaluateDir(ctx, RequestDir(plugin, version), now)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", RequestDir(plugin, version), err))
			continue
		}
		out = append(out, e)
	}
	return out, errors.Join(faults...)
}

func (r *Repository) evaluateDir(ctx context.Context, dir string, now time.Time) (*Evaluation, error) {
	q, err := r.Request(dir)
	if err != nil {
		return nil, err
	}
	return r.Evaluate(ctx, q, now)
}
