package sql

import "sync"

const (
	// cacheEntries is how many texts a Cache holds at most.
	cacheEntries = 10_000
	// cacheText is how long a text of a Cache is at most, in bytes.
	cacheText = 8 << 10
	// cacheBytes bounds the texts of a Cache together; what is made of a text is a small
	// multiple of it.
	cacheBytes = 8 << 20
)

// Cache holds what was made of texts, by the exact text. It has two generations of half
// its size each: when the younger is full it replaces the older, so that texts in use
// stay. It is safe for concurrent use. The zero Cache is not usable.
type Cache[V any] struct {
	build func(text string) V

	mu          sync.Mutex
	young, old  map[string]V
	bytes       int // of the texts of young
	mostBytes   int
	mostEntries int
}

// NewCache returns a cache of what build returns for a text. build must depend on the text
// only; it is called without a lock, with a text that nobody else holds.
func NewCache[V any](build func(text string) V) *Cache[V] {
	return &Cache[V]{build: build, young: map[string]V{}, mostBytes: cacheBytes / 2, mostEntries: cacheEntries / 2}
}

// Get returns what build returns for the text. A text that is in the cache needs no
// allocation.
func (c *Cache[V]) Get(text []byte) V {
	if len(text) > cacheText {
		return c.build(string(text))
	}
	c.mu.Lock()
	v, ok := c.young[string(text)]
	if !ok {
		if v, ok = c.old[string(text)]; ok {
			c.add(string(text), v)
		}
	}
	c.mu.Unlock()
	if ok {
		return v
	}
	own := string(text)
	v = c.build(own)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(own, v)
	return v
}

// Len returns how many texts the cache holds.
func (c *Cache[V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}

// add adds to the younger generation. The lock is held.
func (c *Cache[V]) add(text string, v V) {
	if _, ok := c.young[text]; ok {
		return
	}
	if len(c.young) >= c.mostEntries || c.bytes+len(text) > c.mostBytes {
		c.young, c.old, c.bytes = map[string]V{}, c.young, 0
	}
	c.young[text] = v
	c.bytes += len(text)
}
