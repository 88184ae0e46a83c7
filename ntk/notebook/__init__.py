"What a learner sees and clicks: pictures, sliders, exercises. Nothing else in ntk/ imports it."
