package learn

import (
	"maps"
	"slices"
)

// pattern is a path pattern and what it stands for.
type pattern struct {
	text  string
	count uint64 // recorded accesses
	stars []star // its wildcards, from left to right
}

// star is one * of a pattern.
type star struct {
	classes []idClass // of the values; none for words
	samples []string
	values  int // at least this many different ones
}

// suggestion is a pattern for which only observation speaks.
type suggestion struct {
	text    string
	values  int      // different values at the wildcard, or leaves below **
	samples []string // of them
	depths  int      // of **: different depths
	ids     bool     // of *: a single id was seen
}

// walker collects the patterns of one group.
type walker struct {
	granted   []pattern
	suggested []suggestion
	uncovered uint64 // accesses that no granted pattern is for
	b         *budget
}

// maxSuggestions bounds the suggestions of one group.
const maxSuggestions = 50

// maxCopied is how many nodes a subtree has at most for which * is suggested: it is copied at
// each of its levels.
const maxCopied = 10_000

// literalIDs reports whether the ids of a position stand literally.
func (n *node) literalIDs() bool {
	single := n.ids == 1 && !slices.ContainsFunc(n.classes, idClass.unmistakable)
	return n.star == nil && (n.words > 0 || single)
}

// settle makes * of the ids of a position where they are.
func (n *node) settle(b *budget) {
	if n.ids > 0 && !n.literalIDs() {
		before := n.star
		n.foldIDs(b)
		n.star = mergeNodes(n.star, before, b)
	}
}

// walk collects the patterns below n. Of a node at depth 0 the children are first segments.
func (w *walker) walk(n *node, prefix string, depth int, stars []star) {
	if depth > 0 {
		n.settle(w.b)
	}
	if n.count > 0 && depth > 0 {
		w.granted = append(w.granted, pattern{prefix, n.count, slices.Clone(stars)})
	}
	w.uncovered += n.dropped + n.rest.total()
	for _, segment := range slices.Sorted(maps.Keys(n.children)) {
		w.walk(n.children[segment], prefix+"/"+segment, depth+1, stars)
	}
	if n.star != nil {
		w.walk(n.star, prefix+"/*", depth+1, append(slices.Clone(stars), star{n.classes, n.samples, max(n.ids, len(n.samples))}))
	}
}

// total returns how many accesses are counted in the tree.
func (n *node) total() uint64 {
	if n == nil {
		return 0
	}
	sum := n.count + n.dropped + n.star.total() + n.rest.total()
	for _, child := range n.children {
		sum += child.total()
	}
	return sum
}

// suggest collects the suggestions below n, which walk has settled. It reports whether it
// made one of **.
func (w *walker) suggest(n *node, prefix string, depth int) (deep bool) {
	for _, segment := range slices.Sorted(maps.Keys(n.children)) {
		deep = w.suggest(n.children[segment], prefix+"/"+segment, depth+1) || deep
	}
	if n.star != nil {
		deep = w.suggest(n.star, prefix+"/*", depth+1) || deep
	}
	if depth == 0 || deep {
		return deep
	}
	if depths, leaves := n.shape(); len(depths) >= manyDepths || len(depths) > 1 && leaves >= manyLeaves {
		w.add(suggestion{text: prefix + "/**", values: leaves, samples: n.sampleNames(), depths: len(depths)})
		return true
	}
	values := n.values()
	switch {
	case n.words > 0 && values >= manyValues:
		w.addMerged(n, prefix, suggestion{values: values, samples: n.sampleNames()})
	case n.ids > 0:
		w.addMerged(n, prefix, suggestion{values: n.ids, samples: n.samples, ids: true})
	}
	return false
}

// values returns how many different values a position has, at least.
func (n *node) values() int {
	values := n.words + n.ids
	if n.star != nil {
		values += manyValues
	}
	if n.rest != nil {
		values++
	}
	return values
}

func (w *walker) add(s suggestion) {
	if len(w.suggested) < maxSuggestions {
		w.suggested = append(w.suggested, s)
	}
}

// addMerged suggests * for the children of n. With like.ids only the ids among them.
func (w *walker) addMerged(n *node, prefix string, like suggestion) {
	if len(w.suggested) >= maxSuggestions || n.size(maxCopied) > maxCopied {
		return
	}
	merged := &node{}
	for segment, child := range n.children {
		if segment != "" && (!like.ids || classify(segment) != word) {
			merged.merge(child.clone(), w.b)
		}
	}
	if !like.ids {
		merged = mergeNodes(merged, n.star.clone(), w.b)
		merged = mergeNodes(merged, n.rest.clone(), w.b)
	}
	for _, text := range merged.loose(prefix+"/*", w.b) {
		like.text = text
		w.add(like)
	}
}

// size returns how many nodes the subtree has, or a number above most.
func (n *node) size(most int) int {
	if n == nil {
		return 0
	}
	size := 1
	count := func(child *node) {
		if size <= most {
			size += child.size(most - size)
		}
	}
	for _, child := range n.children {
		count(child)
	}
	count(n.star)
	count(n.rest)
	return size
}

// loose returns the patterns below n with * for every position of many values.
func (n *node) loose(prefix string, b *budget) []string {
	n.settle(b)
	var out []string
	if n.count > 0 {
		out = append(out, prefix)
	}
	if n.values() >= manyValues {
		merged := &node{}
		for segment, child := range n.children {
			if segment != "" {
				merged.merge(child.clone(), b)
			}
		}
		merged = mergeNodes(mergeNodes(merged, n.star.clone(), b), n.rest.clone(), b)
		out = append(out, merged.loose(prefix+"/*", b)...)
		if end := n.children[""]; end != nil {
			out = append(out, prefix+"/")
		}
		return out
	}
	for _, segment := range slices.Sorted(maps.Keys(n.children)) {
		out = append(out, n.children[segment].loose(prefix+"/"+segment, b)...)
	}
	if n.star != nil {
		out = append(out, n.star.loose(prefix+"/*", b)...)
	}
	return out
}

// sampleNames returns some of the values of a position.
func (n *node) sampleNames() []string {
	var out []string
	for _, segment := range slices.Sorted(maps.Keys(n.children)) {
		if segment != "" && len(out) < maxSamples {
			out = append(out, segment)
		}
	}
	for _, sample := range n.samples {
		if len(out) < maxSamples && !slices.Contains(out, sample) {
			out = append(out, sample)
		}
	}
	return out
}

// shape returns at which depths below n paths end, and how many.
func (n *node) shape() (depths map[int]bool, leaves int) {
	depths = map[int]bool{}
	var walk func(n *node, depth int)
	walk = func(n *node, depth int) {
		if n == nil {
			return
		}
		if n.count > 0 && depth > 0 {
			depths[depth] = true
			leaves++
		}
		for segment, child := range n.children {
			if segment != "" {
				walk(child, depth+1)
			}
		}
		walk(n.star, depth+1)
		walk(n.rest, depth+1)
	}
	walk(n, 0)
	return depths, leaves
}
