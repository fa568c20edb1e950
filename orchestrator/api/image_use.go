package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
)

// usedDigests says who names each file: Images of the present topology and of those that runs under way go by,
// boots under way, and, when old is set, Images of every revision before.
func (s *Server) usedDigests(ctx context.Context, old bool) (map[pxe.Digest][]string, error) {
	used := map[pxe.Digest][]string{}
	add := func(d, by string) {
		if d != "" && !slices.Contains(used[pxe.Digest(d)], by) {
			used[pxe.Digest(d)] = append(used[pxe.Digest(d)], by)
		}
	}
	addTopology := func(t *topology.Topology, suffix string) {
		for name, img := range t.Images {
			by := "Image " + name + suffix
			add(string(img.Spec.Kernel), by)
			add(string(img.Spec.File), by)
			for _, d := range img.Spec.Initrds {
				add(string(d), by)
			}
		}
	}
	head, present := s.Revisions.Current()
	addTopology(present, "")
	boots, err := state.List[state.Boot](ctx, s.Store, state.BootsAt)
	if err != nil {
		return nil, err
	}
	for _, b := range boots {
		for _, d := range append([]string{b.Kernel, b.File}, b.Initrds...) {
			add(d, "boot of "+b.Name)
		}
	}
	runs, err := state.List[state.Run](ctx, s.Store, state.RunsAt)
	if err != nil {
		return nil, err
	}
	live := map[int]bool{} // revisions that a run under way goes by
	for _, r := range runs {
		live[r.Revision] = live[r.Revision] || !r.State.Ended()
	}
	revisions, err := s.Revisions.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range revisions {
		if r.Revision == head.Revision || !old && !live[r.Revision] {
			continue
		}
		_, t, err := s.Revisions.Load(ctx, r.Revision)
		if err != nil {
			return nil, err
		}
		addTopology(t, fmt.Sprintf(" of revision %d", r.Revision))
	}
	return used, nil
}

// removeImage refuses while something names a file of the image that no other image keeps.
func (s *Server) removeImage(ctx context.Context, name string, old bool) ([]pxe.Digest, error) {
	r, err := s.Images.Image(name)
	if err != nil {
		return nil, err
	}
	used, err := s.usedDigests(ctx, !old)
	if err != nil {
		return nil, err
	}
	others, err := s.Images.Images()
	if err != nil {
		return nil, err
	}
	kept := map[pxe.Digest]bool{}
	for _, o := range others {
		for _, p := range o.Manifest.Files {
			kept[p.Digest] = kept[p.Digest] || o.Manifest.Name != name
		}
	}
	var by []string
	for _, p := range r.Manifest.Files {
		if !kept[p.Digest] {
			by = append(by, used[p.Digest]...)
		}
	}
	if len(by) > 0 {
		slices.Sort(by)
		next := "remove it from the topology first"
		if !slices.ContainsFunc(by, func(s string) bool { return !strings.Contains(s, " of revision ") }) {
			next = "give --old-revisions if you will never roll back to them"
		}
		return nil, &fault.Error{Kind: fault.Conflict, Where: "image " + name, What: "it is in use", Evidence: strings.Join(slices.Compact(by), ", "), Next: next}
	}
	return s.Images.Remove(name, func(d pxe.Digest) bool { return len(used[d]) > 0 })
}
