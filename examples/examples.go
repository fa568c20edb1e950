// Package examples carries the example data centres inside the binary.
package examples

import "embed"

// Story is the data centre of the story, the variant with too few machines left, and a small one whose
// machines can be real, and the story with those.
//
//go:embed story story-scarce real real-story
var Story embed.FS
