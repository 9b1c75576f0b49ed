package learn

import (
	"slices"
	"strings"
)

// Bounds of what is kept: a plugin chooses its paths.
const (
	// manyValues is how many different values a position needs before a wildcard is
	// suggested, and how many different ids it needs to be * beside words.
	manyValues = 8
	// manyDepths and manyLeaves are what a subtree of varying depth needs before ** is suggested.
	manyDepths = 5
	manyLeaves = 50
	// maxValues is how many words of one position are kept.
	maxValues = 256
	// maxDepth is how many segments of a path are kept.
	maxDepth = 32
	// maxSamples is how many samples are kept of a position.
	maxSamples = 5
	// maxSample is how long a sample is, in bytes.
	maxSample = 80
)

// node is one position in the paths of a group.
type node struct {
	count    uint64           // accesses that end here
	children map[string]*node // by segment; "" is the end of a path with a slash at its end
	ids      int              // children that are ids
	words    int              // children that are words
	star     *node            // the ids once there are manyValues of them
	classes  []idClass        // of the ids, each once
	samples  []string         // of ids
	rest     *node            // words beyond maxValues
	dropped  uint64           // accesses below this node that are not kept at all
}

// budget is how many nodes may still be made.
type budget struct{ left int }

func (b *budget) node() *node {
	if b.left <= 0 {
		return nil
	}
	b.left--
	return &node{}
}

// add counts one access to a path. It reports false if the path is not kept.
func (n *node) add(path string, b *budget) bool {
	rest, depth, kept := strings.TrimPrefix(path, "/"), 0, true
	for more := true; more; depth++ {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		next, whole := n.child(segment, depth, b)
		if next == nil {
			n.dropped++
			return false
		}
		n, kept = next, kept && whole
	}
	n.count++
	return kept
}

// child returns the node for a segment, making it at the first access. whole is false if
// the node stands for words beyond maxValues. It returns nil beyond the bounds.
func (n *node) child(segment string, depth int, b *budget) (next *node, whole bool) {
	if known := n.children[segment]; known != nil {
		return known, true
	}
	if depth >= maxDepth {
		return nil, false
	}
	class := word
	if depth > 0 {
		class = classify(segment)
	}
	switch {
	case class != word && n.star != nil:
		n.note(segment, class)
		return n.star, true
	case class == word && n.words >= maxValues && segment != "":
		if n.rest == nil {
			n.rest = b.node()
		}
		return n.rest, false
	}
	if next = b.node(); next == nil {
		return nil, false
	}
	if n.children == nil {
		n.children = make(map[string]*node, 1)
	}
	n.children[strings.Clone(segment)] = next
	switch {
	case class != word:
		n.ids++
		n.note(segment, class)
		if n.ids >= manyValues {
			n.foldIDs(b)
			return n.star, true
		}
	case segment != "":
		n.words++
	}
	return next, true
}

// note keeps a sample of an id, and its class.
func (n *node) note(segment string, class idClass) {
	if !slices.Contains(n.classes, class) {
		n.classes = append(n.classes, class)
	}
	if len(n.samples) < maxSamples && !slices.Contains(n.samples, segment) {
		n.samples = append(n.samples, strings.Clone(segment))
	}
}

// foldIDs merges the children that are ids into one.
func (n *node) foldIDs(b *budget) {
	star := &node{}
	for segment, child := range n.children {
		if segment == "" || classify(segment) == word {
			continue
		}
		star.merge(child, b)
		delete(n.children, segment)
		b.left++
	}
	n.star, n.ids = star, 0
}

// merge adds the accesses of another node, which is not used afterwards.
func (n *node) merge(other *node, b *budget) {
	n.count += other.count
	n.dropped += other.dropped
	for _, class := range other.classes {
		if !slices.Contains(n.classes, class) {
			n.classes = append(n.classes, class)
		}
	}
	for _, sample := range other.samples {
		if len(n.samples) < maxSamples && !slices.Contains(n.samples, sample) {
			n.samples = append(n.samples, sample)
		}
	}
	n.star = mergeNodes(n.star, other.star, b)
	n.rest = mergeNodes(n.rest, other.rest, b)
	for segment, child := range other.children {
		n.mergeChild(segment, child, b)
	}
	if n.ids >= manyValues || n.star != nil && n.ids > 0 {
		star := n.star
		n.foldIDs(b)
		n.star = mergeNodes(n.star, star, b)
	}
}

func (n *node) mergeChild(segment string, child *node, b *budget) {
	if known := n.children[segment]; known != nil {
		known.merge(child, b)
		b.left++
		return
	}
	isWord := classify(segment) == word
	if isWord && segment != "" && n.words >= maxValues {
		n.rest = mergeNodes(n.rest, child, b)
		return
	}
	if n.children == nil {
		n.children = make(map[string]*node, len(n.children))
	}
	n.children[segment] = child
	switch {
	case !isWord:
		n.ids++
	case segment != "":
		n.words++
	}
}

func mergeNodes(a, other *node, b *budget) *node {
	switch {
	case a == nil:
		return other
	case other == nil:
		return a
	}
	a.merge(other, b)
	b.left++
	return a
}

// clone returns a deep copy, to be merged.
func (n *node) clone() *node {
	if n == nil {
		return nil
	}
	out := *n
	out.children = make(map[string]*node, len(n.children))
	for segment, child := range n.children {
		out.children[segment] = child.clone()
	}
	out.star, out.rest = n.star.clone(), n.rest.clone()
	out.classes, out.samples = slices.Clone(n.classes), slices.Clone(n.samples)
	return &out
}
